"""The loss interface of all training objectives: rows of one forward in, the numbers to minimise out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sfumato.diffusion.families.family import Family
from sfumato.lora.packed import PackedLora


@dataclass(frozen=True, slots=True, eq=False)
class FitContext:
    """What all fits of a training share. Sizes are pixels; ``batch`` is the rows of a picture in one forward."""

    family: Family
    width: int
    height: int
    guidance: float
    batch: int
    learning_rate: float


@dataclass(frozen=True, slots=True, eq=False)
class LossRows:
    """The rows of one forward.

    ``pictures`` are one or more tensors of clean latents ``[rows, ...]``: the picture to learn first, then those an objective compares it
    with. ``conditions`` are rows of what `Family.encode` returns, ``quantiles [rows]`` those of the noise levels, ``noise [rows, ...]``.
    """

    pictures: tuple[Tensor, ...]
    conditions: Mapping[str, Tensor]
    quantiles: Tensor
    noise: Tensor


class Loss(Protocol):
    """A function of the context, the rows and the adapters in training."""

    def __call__(self, context: FitContext, rows: LossRows, phi: PackedLora) -> Tensor:
        """``[rows, ...]``, with gradient for the factors of ``phi``; the loss of a sample is the mean over all numbers of its rows.

        ``phi`` is not attached to the denoiser: a loss attaches it where the model with adapters predicts, and leaves it off where the
        model without them is the reference.
        """
        ...


def denoising_loss(context: FitContext, rows: LossRows, phi: PackedLora) -> Tensor:
    """The squared error of the model's own training objective (ArtAug section 3.3), ``[rows, ...]``, on the first picture."""
    with phi.attached():
        return prediction_error(context, rows.pictures[0], rows).square()


def prediction_error(context: FitContext, clean: Tensor, rows: LossRows) -> Tensor:
    """The model's prediction for noised pictures minus its target, ``[rows, ...]``, with gradient.

    Args:
        context: the model, and the size and guidance to predict at.
        clean: latents ``[rows, ...]`` in the noise's precision.
        rows: noise, levels and texts.
    """
    family, noising = context.family, context.family.parameterization
    levels = noising.levels(rows.quantiles).to(rows.noise.device)
    noised = noising.noised(clean, rows.noise, levels)
    answer = family.predict(noised, levels, rows.conditions, context.width, context.height, context.guidance)
    return answer.to(rows.noise.dtype) - noising.target(clean, rows.noise, levels)
