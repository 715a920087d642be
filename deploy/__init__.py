"""Deployment to a cluster besides the chart: helm and kubectl, plain manifests, images, sizes, backups."""
