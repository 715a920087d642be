"""The inference engine: paints pictures of any prompt, seed, size and number of steps in batches on one copy of the network.

Every picture is painted by the unmodified diffusers pipeline in its own thread; their denoiser calls are joined (`batching`), and
each row sees the weights of its picture's version and scale (`weights`).
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline

from services.inference.painting.batching import DenoiserBatcher
from services.inference.painting.extras import Extras
from services.inference.painting.pipelines import PaintedImage, PaintRequest, PipelineCopy
from services.inference.painting.weights import AdapterMix, DenoiserWeights, LoadedVersion
from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families import family_of
from sfumato.diffusion.limits import ModelLimits, check_request
from sfumato.diffusion.previews import Previews
from sfumato.errors import Busy, InvalidInput, NotFound, Unavailable
from sfumato.lora.adapter import Adapter

__all__ = ["EngineSettings", "EngineLoad", "InferenceEngine", "PaintRequest", "PaintedImage"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine uses its machine.

    Attributes:
        pictures: in work at the same time.
        waiting: pictures that may wait behind them.
        max_batch: rows (pictures, unconditional and region branches) of one forward.
        memory: bytes that a forward may need beside the weights; larger rows lower the batch size. ``None``: no limit.
        extras: bytes of adapters that requests add on top of a version.
        fuse: keep fused weights of every version for scale 1; without them scale 1 is computed like any other scale.
        scales: smallest and largest adapter scale that is accepted.
    """

    pictures: int = 16
    waiting: int = 64
    max_batch: int = 16
    memory: int | None = None
    extras: int = 2**30
    fuse: bool = True
    scales: tuple[float, float] = (0.0, 4.0)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Load of the engine: pictures in work and waiting; forwards run so far, and their rows."""

    working: int
    waiting: int
    forwards: int
    rows: int


@dataclass(eq=False)
class _Job:
    """A picture that waits or is in work; ``held`` is closed when it ends."""

    wanted: PaintRequest
    mix: AdapterMix
    on_step: Callable[[int, int], None] | None
    previews: Previews | None
    stopped: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    held: ExitStack = field(default_factory=ExitStack)


class InferenceEngine:
    """One network and any number of its versions. `paint` runs in one event loop; every other method may be called from any thread."""

    def __init__(self, pipeline: DiffusionPipeline, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self.pipeline = pipeline
        self._family = family_of(pipeline)
        self._network = self._family.denoiser
        self._weights = DenoiserWeights(self._network)
        self._batcher = DenoiserBatcher(self._network, self._family.per_sample, self._forward)
        self._budget = RowBudget(self._family, self.settings.max_batch, self.settings.memory)
        self._versions: dict[str, LoadedVersion] = {}
        self._extras = Extras(self.settings.extras)
        self._threads = ThreadPoolExecutor(self.settings.pictures, thread_name_prefix="painting")
        self._pipeline_copies = threading.local()
        self._autoencoding = threading.Lock() if self._family.changes_autoencoder_precision else None
        self._tokenizing = threading.Lock()
        self._jobs: set[_Job] = set()
        self._seconds = 0.0  # moving average of a picture's seconds
        self._closed = False

    @property
    def limits(self) -> ModelLimits:
        """The model's limits and defaults."""
        return self._family.limits

    @property
    def load(self) -> EngineLoad:
        """The current load."""
        working = sum(job.begun for job in tuple(self._jobs))
        return EngineLoad(working, len(self._jobs) - working, self._batcher.forwards, self._batcher.rows)

    @property
    def versions(self) -> tuple[str, ...]:
        """The prepared versions."""
        return tuple(self._versions)

    @property
    def extras(self) -> tuple[str, ...]:
        """The loaded adapters, the least recently used first."""
        return self._extras.names

    def prepare(self, version: str, adapter: Adapter | None) -> None:
        """Prepare a version while pictures are painted; pictures in work are not affected. ``None`` is the base model.

        Raises:
            InvalidInput: the adapter does not fit this model, or the fused weights are not finite.
        """
        prepared = self._weights.version(version, adapter, fuse=self.settings.fuse)
        for name, weight in (prepared.fused or {}).items():
            if not torch.isfinite(weight).all():
                raise InvalidInput("adapter", f"{name}: fused, it holds numbers that are not finite.")
        self._versions[version] = prepared

    def drop(self, version: str) -> None:
        """Drop a version. Pictures in work keep it until they end; its memory is freed with the last of them."""
        if self._versions.pop(version, None) is not None:
            with self._batcher.quiet():
                self._weights.pristine()

    def load_extra(self, name: str, adapter: Adapter) -> None:
        """Load an adapter that requests can add; the least recently used adapters are unloaded when memory is short.

        A name stands for one adapter: a loaded name is left as it is.

        Raises:
            InvalidInput: the adapter does not fit this model, or is larger than the whole budget.
            Busy: the adapters in use leave no room for it.
        """
        self._extras.put(name, lambda: self._weights.factors(adapter))

    def hold(self, extras: Sequence[tuple[str, float]]) -> AbstractContextManager[object]:
        """Keep loaded adapters loaded while the context is open; entering it raises NotFound when one is not loaded."""
        return self._extras.used(extras)

    async def paint(
        self,
        wanted: PaintRequest,
        version: str,
        extras: Sequence[tuple[str, float]] = (),
        on_step: Callable[[int, int], object] | None = None,
        previews: Previews | None = None,
    ) -> PaintedImage:
        """Paint one picture, sharing forwards with all others in work.

        A picture that is painted alone is bit-identical to the bare pipeline's; batching changes it by rounding only. When the awaiting
        task is cancelled, the picture ends at its next step. Prompts are tokenized in the event loop: limit their length before.

        Args:
            wanted: the picture.
            version: a prepared version; the picture keeps it until it ends, even when the version is dropped in between.
            extras: names and weights of loaded adapters, on top of the version.
            on_step: called with ``(steps done, all steps)``, in the event loop.
            previews: receives the picture while it is in work, in the event loop, with the index 0.

        Raises:
            InvalidInput: names the field that the model cannot serve: one of `check_request`'s, or ``adapter_scale``, ``extras[i]``.
            NotFound: the version is not prepared, or an adapter was never loaded.
            Busy: the queue is full, or an adapter was unloaded for others; ``retry_after`` says when to try again.
            Unavailable: the engine is closing.
        """
        if self._closed:
            raise Unavailable("This server is shutting down.", hint="Ask another replica.")
        self._check(wanted, extras)
        if len(self._jobs) >= self.settings.pictures + self.settings.waiting:
            raise Busy(f"{self.settings.waiting} pictures are waiting already.", hint="Try again later.", retry_after=self._patience())
        if version not in self._versions:
            raise NotFound(f"The version {version} is not prepared.", hint=f"Prepared: {', '.join(self._versions) or 'none'}.")
        loop = asyncio.get_running_loop()
        with ExitStack() as held:
            adapters = held.enter_context(self._extras.used(extras))
            mix = AdapterMix(self._versions[version], wanted.adapter_scale, adapters)
            shown = previews and Previews(previews.every, _on(loop, previews.tell))
            job = _Job(wanted, mix, on_step and _on(loop, on_step), shown)
            future: Future[PaintedImage] = self._threads.submit(contextvars.copy_context().run, self._paint, job)
            self._jobs.add(job)
            job.held = held.pop_all()
        future.add_done_callback(lambda _: self._ended(job))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            job.stopped.set()
            raise

    async def close(self) -> None:
        """Accept no more pictures, and wait for those in work and waiting."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)

    def _check(self, wanted: PaintRequest, extras: Sequence[tuple[str, float]]) -> None:
        low, high = self.settings.scales
        if not low <= wanted.adapter_scale <= high:
            raise InvalidInput("adapter_scale", f"{wanted.adapter_scale:g} is not in {low:g}..{high:g}.")
        for index, (name, weight) in enumerate(extras):
            if not (math.isfinite(weight) and abs(weight) <= high):
                raise InvalidInput(f"extras[{index}]", f"the weight {weight:g} of {name} is not in {-high:g}..{high:g}.")
        with self._tokenizing:
            check_request(wanted.request, self.limits, self._family.count_tokens)

    def _patience(self) -> float:
        """Estimated seconds until all waiting pictures are in work, from the last pictures' times; at least 1."""
        return max(1.0, self._seconds * self.settings.waiting / self.settings.pictures)

    def _paint(self, job: _Job) -> PaintedImage:
        """Runs in a thread of the pool."""
        began, job.begun = time.monotonic(), True
        if not hasattr(self._pipeline_copies, "pipeline_copy"):
            self._pipeline_copies.pipeline_copy = PipelineCopy(self.pipeline, self._batcher, self._budget, self._autoencoding)
        pipeline_copy = self._pipeline_copies.pipeline_copy
        request = job.wanted.request
        max_rows = self._max_rows(request.width, request.height)
        image = pipeline_copy.paint(request, job.mix, max_rows, job.stopped, job.on_step, job.previews)
        seconds = time.monotonic() - began
        self._seconds = 0.8 * self._seconds + 0.2 * seconds if self._seconds else seconds
        return PaintedImage(image, request.seed, job.mix.version.name, seconds)

    def _max_rows(self, width: int, height: int) -> int:
        if self.settings.memory is None:
            return self.settings.max_batch
        with self._batcher.quiet():  # the budget is estimated on the network itself, without computing
            self._weights.pristine()
            self._budget.pictures(width, height)
            return self._budget.rows(width, height)

    def _forward(self, whose: Sequence[tuple[Any, int]], arguments: dict[str, Any]) -> Any:
        self._weights.ready(whose)
        return self._network(**arguments)

    def _ended(self, job: _Job) -> None:
        self._jobs.discard(job)
        job.held.close()


def _on(loop: asyncio.AbstractEventLoop, told: Callable[..., Any]) -> Callable[..., None]:
    """The callback, for calls from other threads: it runs in ``loop``."""
    return lambda *args: loop.call_soon_threadsafe(told, *args) and None
