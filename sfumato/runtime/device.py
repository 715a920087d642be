"""The device and the precision that a worker computes with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pick_device() -> str:
    """``cuda`` if PyTorch finds a CUDA device, otherwise ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision_named(name: str) -> torch.dtype:
    """The dtype of a model's weights, by its name in a run's spec.

    Raises:
        InvalidInput: the name is unknown.
    """
    import torch

    from sfumato.errors import InvalidInput

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise InvalidInput("precision", f"{name!r} is not a precision.", hint=f"Known: {', '.join(known)}.")
    return known[name]
