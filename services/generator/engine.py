"""The generator: requests in, pictures out, on one pipeline with at most one adapter fused into it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families import family_of
from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.loading import load_pipeline
from sfumato.diffusion.previews import Previews
from sfumato.diffusion.sampling import Picture, paint
from sfumato.errors import InvalidInput
from sfumato.lora.adapter import Adapter
from sfumato.lora.fuse import Fuser
from sfumato.types import GenerateRequest

__all__ = ["GeneratorEngine", "GeneratorSettings", "Picture", "load_generator"]


@dataclass(frozen=True, slots=True)
class GeneratorSettings:
    """How the generator uses its machine.

    At most ``max_batch`` rows (pictures, unconditional and region branches) go through one forward, fewer where they would need
    more than ``memory`` bytes beside the weights; ``None`` is no limit. The count comes from shapes, never from the memory that is free.
    """

    max_batch: int = 16
    memory: int | None = None


class GeneratorEngine:
    """One loaded pipeline. Calls are serialised: a pipeline's scheduler keeps the state of the picture in progress."""

    def __init__(self, pipeline: DiffusionPipeline, settings: GeneratorSettings | None = None) -> None:
        self.pipeline = pipeline
        self.settings = settings or GeneratorSettings()
        self._family = family_of(pipeline)
        self._budgets: dict[GeneratorSettings, RowBudget] = {}
        self._fuser = Fuser(self._family.denoiser)
        self._lock = threading.Lock()

    @property
    def limits(self) -> ModelLimits:
        """What may be asked of the model, and its defaults."""
        return self._family.limits

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        on_step: Callable[[int, int], None] | None = None,
        settings: GeneratorSettings | None = None,
        previews: Previews | None = None,
    ) -> list[Picture]:
        """Paint every request (ArtAug section 3.1 where it has regions; a plain picture where it has none).

        Deterministic: the same requests in the same order give the same bytes; batch mates change a picture by rounding only.

        Args:
            requests: what to paint.
            on_step: is called with ``(steps done, steps in all)``.
            settings: how to use the machine for these; the engine's own when absent.
            previews: receives the pictures in progress; it does not change them.

        Raises:
            InvalidInput: naming the field of the first request the model cannot serve; nothing was painted then.
        """
        with self._lock:
            return paint(self._family, requests, self._budget(settings or self.settings), on_step, previews)

    def use(self, name: Hashable, load: Callable[[], Adapter | None]) -> None:
        """From the next picture on, paint with the adapter called ``name``; ``load`` is called only if another one is fused now.

        Raises:
            InvalidInput: the adapter does not fit this model; the engine keeps the adapter it had. And what ``load`` raises.
        """
        with self._lock:
            self._fuser.use(name, load)

    def set_adapter(self, adapter: Adapter | None, scale: float = 1.0) -> None:
        """From the next picture on, paint with ``theta + scale * adapter``, fused from the pristine weights.

        Raises:
            InvalidInput: the adapter does not fit this model, or ``scale`` is not finite; the engine keeps the adapter it had.
        """
        if not math.isfinite(scale):
            raise InvalidInput("scale", f"{scale} is not a finite number.")
        with self._lock:
            self._fuser.fuse(adapter, scale)

    def _budget(self, settings: GeneratorSettings) -> RowBudget:
        if settings not in self._budgets:
            self._budgets[settings] = RowBudget(self._family, settings.max_batch, settings.memory)
        return self._budgets[settings]


def load_generator(
    path: Path, settings: GeneratorSettings | None = None, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> GeneratorEngine:
    """An engine on a saved pipeline, in ``dtype`` whatever precision its files have.

    Raises:
        MissingWeights: the folder holds no complete pipeline.
        BrokenWeights: its files cannot be read.
    """
    return GeneratorEngine(load_pipeline(path, dtype=dtype, device=device), settings)
