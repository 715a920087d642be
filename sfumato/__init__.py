"""sfumato: a text-to-image model that learns from its own corrections."""

from sfumato import torchvision_ops

__version__ = "0.1.0"

torchvision_ops.install()
