"""A copy of the diffusers pipeline around the shared network; it paints one picture at a time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from services.inference.painting.batching import DenoiserBatcher
from services.inference.painting.weights import AdapterMix
from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families import family_of
from sfumato.diffusion.families.catalog import DENOISERS
from sfumato.diffusion.previews import Previews
from sfumato.diffusion.sampling import paint
from sfumato.errors import Diverged
from sfumato.types import GenerateRequest, Image


@dataclass(frozen=True, slots=True, eq=False)
class PaintRequest:
    """One picture to paint.

    ``adapter_scale`` is alpha: 0 is exactly the base model, 1 the fused model; other values interpolate or extrapolate linearly.
    """

    request: GenerateRequest
    adapter_scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class PaintedImage:
    """A picture, its seed and version; the same seed gives it again. ``seconds``: from the start of the work, without waiting."""

    image: Image
    seed: int
    version: str
    seconds: float = 0.0


class PipelineCopy:
    """A copy of the pipeline with its own scheduler and tokenizers, which hold the state of the picture in work, and a `Slot` in place of
    the denoiser. The networks are shared; the rest of the pipeline is unchanged.

    ``autoencoding`` is held while the autoencoder's precision is changed (SDXL's autoencoder overflows in half precision).
    """

    def __init__(
        self, pipeline: DiffusionPipeline, batcher: DenoiserBatcher, budget: RowBudget, autoencoding: threading.Lock | None
    ) -> None:
        own: Any = copy.copy(pipeline)
        self.slot = batcher.slot()
        for name, part in pipeline.components.items():
            if name in DENOISERS:
                vars(own)[name] = self.slot.module
            elif part is not None and not isinstance(part, torch.nn.Module):
                vars(own)[name] = copy.deepcopy(part)
        self._family: Any = family_of(own)
        self._budget, self._autoencoding = budget, autoencoding or nullcontext()
        self._decode = self._family.decode
        self._family.decode = self._decoded
        if autoencoding is not None:
            self._family.encode_pictures = self._alone(self._family.encode_pictures)
            masked: Any = self._family.masked()
            masked._encode_vae_image = self._alone(masked._encode_vae_image)

    def paint(
        self,
        request: GenerateRequest,
        mix: AdapterMix,
        max_rows: int,
        stopped: threading.Event,
        on_step: Callable[[int, int], None] | None = None,
        previews: Previews | None = None,
    ) -> Image:
        """Paint the picture; its forwards have at most ``max_rows`` rows, those of other pictures included.

        Raises:
            InvalidInput: the model cannot paint it.
            Diverged: the latents are not finite.
            PictureCancelled: ``stopped`` was set.
        """

        def step_ended(done: int, total: int) -> None:
            self.slot.check()
            if on_step is not None:
                on_step(done, total)

        with self.slot.taken(mix, max_rows, stopped):
            return paint(self._family, [request], self._budget, step_ended, previews)[0].image

    def _decoded(self, latents: Tensor, width: int, height: int) -> list[Image]:
        if not torch.isfinite(latents).all():
            raise Diverged("The picture is not finite: the model's weights are unusable, or the adapter's scale is far too large.")
        with self.slot.aside(), self._autoencoding:
            return self._decode(latents, width, height)

    def _alone(self, encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def encoded(*args: Any, **kwargs: Any) -> Tensor:
            with self._autoencoding:
                return encode(*args, **kwargs)

        return encoded
