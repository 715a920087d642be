"""What a denoiser is trained to predict: noise levels, noised latents and the target, by the model's own scheduler.

``h`` are clean latents, ``epsilon`` is noise of their shape; levels have one entry a row and are broadcast over the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.errors import InvalidInput

# The quantiles 0 and 1 of a normal are infinite.
EDGE = 1e-6


class Parameterization(Protocol):
    """Noise levels and targets. ``levels`` are what the family's ``predict`` takes: sigmas in (0, 1), or whole training timesteps."""

    def levels(self, uniform: Tensor) -> Tensor:
        """The noise levels ``[rows]`` at the quantiles ``uniform`` ``[rows]``, each in (0, 1), of the levels trained at."""
        ...

    def noised(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """``latents`` ``[rows, ...]`` with ``noise`` at ``levels`` ``[rows]``, scaled as the denoiser takes them."""
        ...

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """What the denoiser should answer to `noised`, ``[rows, ...]``."""
        ...

    def clean(self, noised: Tensor, prediction: Tensor, levels: Tensor) -> Tensor:
        """The clean latents ``[rows, ...]`` that the denoiser's answer to `noised` implies."""
        ...


@dataclass(frozen=True, slots=True)
class FlowMatching:
    """``h_t = (1 - sigma) h + sigma epsilon``; the target is the velocity ``epsilon - h`` (ArtAug section 3.3).

    Levels are sigmas, logit-normal: ``sigmoid(normal(logit_mean, logit_deviation))`` (Stable Diffusion 3, section 3.1).
    """

    logit_mean: float = 0.0
    logit_deviation: float = 1.0

    def levels(self, uniform: Tensor) -> Tensor:
        """Sigmas, float32."""
        normal = torch.special.ndtri(uniform.double().clamp(EDGE, 1 - EDGE)).float()
        return torch.sigmoid(self.logit_mean + self.logit_deviation * normal)

    def noised(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """On the straight line from picture to noise."""
        sigma = _column(levels, latents)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The velocity, the same at every level."""
        return noise - latents

    def clean(self, noised: Tensor, prediction: Tensor, levels: Tensor) -> Tensor:
        """Back along the straight line."""
        return noised - _column(levels, noised) * prediction


@dataclass(frozen=True, slots=True, eq=False)
class Epsilon:
    """``h_t = sqrt(a_t) h + sqrt(1 - a_t) epsilon``; the target is the noise (DDPM). ``alphas_cumprod[t]`` is a_t, float64.

    Levels are whole timesteps, uniform over the training schedule.
    """

    alphas_cumprod: Tensor

    def levels(self, uniform: Tensor) -> Tensor:
        """Timesteps, int64."""
        count = len(self.alphas_cumprod)
        return (uniform.double() * count).long().clamp(0, count - 1)

    def noised(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Variance-preserving: unit variance stays unit variance."""
        signal, spread = self._shares(latents, levels)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The noise itself."""
        return noise

    def clean(self, noised: Tensor, prediction: Tensor, levels: Tensor) -> Tensor:
        """`noised` solved for the latents."""
        signal, spread = self._shares(noised, levels)
        return (noised - spread * prediction) / signal

    def _shares(self, latents: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        share = self.alphas_cumprod.to(levels.device)[levels]
        return _column(share.sqrt(), latents), _column((1 - share).sqrt(), latents)


@dataclass(frozen=True, slots=True, eq=False)
class VPrediction(Epsilon):
    """As `Epsilon`, but the target is ``v = sqrt(a_t) epsilon - sqrt(1 - a_t) h`` (Salimans and Ho, 2022)."""

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The angular velocity."""
        signal, spread = self._shares(latents, levels)
        return signal * noise - spread * latents

    def clean(self, noised: Tensor, prediction: Tensor, levels: Tensor) -> Tensor:
        """The rotation back."""
        signal, spread = self._shares(noised, levels)
        return signal * noised - spread * prediction


def parameterization_of(scheduler: Any) -> FlowMatching | Epsilon:
    """The parameterization that the scheduler's model was trained on.

    Raises:
        InvalidInput: a scheduler that is neither flow matching nor predicts noise or velocity.
    """
    if not hasattr(scheduler, "alphas_cumprod"):
        if hasattr(scheduler, "scale_noise"):
            return FlowMatching()
        raise InvalidInput("model", f"its {type(scheduler).__name__} has no known noise schedule.", hint="Use DDIM or Euler.")
    kind = scheduler.config.prediction_type
    classes = {"epsilon": Epsilon, "v_prediction": VPrediction}
    if kind not in classes:
        raise InvalidInput("model", f"its scheduler predicts {kind!r}.", hint=f"Supported: {', '.join(classes)} and flow matching.")
    return classes[kind](scheduler.alphas_cumprod.double().cpu())


def _column(levels: Tensor, like: Tensor) -> Tensor:
    """``[rows]`` in ``like``'s precision, on its device, with as many dimensions as it has."""
    return levels.to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))
