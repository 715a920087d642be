"""Where a worker computes."""

from __future__ import annotations


def pick_device() -> str:
    """``cuda`` where PyTorch sees one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
