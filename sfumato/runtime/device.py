"""Where a worker computes, and in what precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pick_device() -> str:
    """``cuda`` where PyTorch sees one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision_named(name: str) -> torch.dtype:
    """The dtype of a model's weights, by its name in a run's spec.

    Raises:
        InvalidInput: there is none of this name.
    """
    import torch

    from sfumato.errors import InvalidInput

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise InvalidInput("precision", f"{name!r} is not a precision.", hint=f"Known: {', '.join(known)}.")
    return known[name]
