"""sfumato: a text-to-image model that learns from its own corrections."""

__version__ = "0.1.0"
