"""The services, one folder each; none imports another."""

import sfumato  # noqa: F401 (before any engine imports diffusers: see sfumato.torchvision_ops)
