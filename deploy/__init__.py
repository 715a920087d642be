"""What brings the system onto a cluster beside the chart: the tools' binaries, the plain manifests, backups."""
