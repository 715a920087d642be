"""Batches the denoiser: pictures in work, each painted by its own pipeline, share one forward at every step.

In each pipeline a `Slot` replaces the denoiser. The slot has the network's interface; its forward hands the call to the
`DenoiserBatcher`, which joins the calls of all slots row by row and splits the output. There is no separate batching thread: the thread
whose call completes a batch runs the forward, so a single picture never waits. A forward waits only for pictures that are between two
steps (microseconds of a scheduler), not for pictures that encode a prompt, decode, or have another shape.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.diffusion.arguments import Nested, bound, flatten, unflatten

SEEN = 64
"""Tensors whose digests a slot caches: more than a pipeline reuses over its steps."""

Forward = Callable[[Sequence[tuple[Any, int]], dict[str, Any]], Any]
"""Runs one forward, given the adapter mix and the number of rows of each call, in order, and the denoiser's arguments."""


class PictureCancelled(Exception):
    """The request was cancelled; raised in the picture's thread at its next step."""


@dataclass(eq=False)
class _DenoiserCall:
    """One call of the denoiser: per-sample arguments (``rows``) and all arguments (``flat``). Calls with equal ``key`` can be joined."""

    slot: Slot
    rows: dict[str, Tensor]
    flat: dict[str, Any]
    nested: Nested
    count: int
    key: Hashable
    # Set when the answer is there, or when the call's own thread has to run `batch`.
    woken: threading.Event = field(default_factory=threading.Event)
    batch: list[_DenoiserCall] | None = None
    answer: Any = None
    error: BaseException | None = None

    @property
    def device(self) -> torch.device:
        """The device of the latents."""
        return next(iter(self.rows.values())).device

    def expanded(self, name: str) -> Tensor:
        """An argument with all its rows; a scalar timestep is expanded."""
        tensor = self.rows[name].to(self.device)
        return tensor if tensor.ndim and len(tensor) == self.count else tensor.expand(self.count, *tensor.shape[1:])


class DenoiserBatcher:
    """Joins the calls of the slots of one denoiser.

    Args:
        denoiser: the network.
        per_sample: names of the arguments that have one row per sample, latents first.
        answer: runs a forward; it is never called from two threads at a time.

    ``forwards`` and ``rows`` count what has run.
    """

    def __init__(self, denoiser: nn.Module, per_sample: Sequence[str], answer: Forward) -> None:
        self.denoiser, self.per_sample, self._answer = denoiser, tuple(per_sample), answer
        self.forwards = self.rows = 0
        self._lock = threading.Condition(threading.Lock())
        self._paused = False
        self._slots: set[Slot] = set()
        self._waiting: list[_DenoiserCall] = []  # the oldest first
        self._running = False

    def slot(self) -> Slot:
        """A new slot; forwards do not wait for it until it is taken."""
        return Slot(self)

    def call(self, call: _DenoiserCall) -> Any:
        """The denoiser's output for one call, in the calling thread; raises what the forward raised."""
        with self._lock:
            self._waiting.append(call)
            call.slot.expected = None
            batch = self._next()
        if batch is None:
            call.woken.wait()
        elif call not in batch:
            self._delegate(batch)
            call.woken.wait()
        else:
            call.batch = batch
        if call.batch is not None:
            self._run_batch(call.batch)
            call.batch = None
        if call.error is not None:
            raise call.error
        return call.answer

    def slot_left(self) -> None:
        """A slot is no longer awaited: a batch that is complete without it runs now, in the thread of one of its calls."""
        with self._lock:
            batch = self._next()
        if batch is not None:
            self._delegate(batch)

    def _delegate(self, batch: list[_DenoiserCall]) -> None:
        batch[0].batch = batch
        batch[0].woken.set()

    def _next(self) -> list[_DenoiserCall] | None:
        """The calls of the next forward, which counts as running from now on; ``None`` while no batch is complete. Called under the lock.

        Groups are tried in the order of their oldest call; a group that still waits for a slot does not hold up the others.
        """
        if self._running or self._paused:
            return None
        passed: set[Hashable] = set()
        for first in self._waiting:
            if first.key in passed:
                continue
            passed.add(first.key)
            batch, rows, full = [], 0, False
            for call in self._waiting:
                if call.key == first.key:
                    if batch and rows + call.count > first.slot.max_rows:
                        full = True
                        break
                    batch.append(call)
                    rows += call.count
            if full or rows >= first.slot.max_rows or all(slot.expected != first.key for slot in self._slots):
                self._waiting = [call for call in self._waiting if call not in batch]
                self._running = True
                return batch
        return None

    def _run_batch(self, batch: list[_DenoiserCall]) -> None:
        """Run one forward and give every call its rows of the output."""
        try:
            self._run(batch)
        except BaseException as error:  # it belongs to every call of the batch, not to this thread only
            for call in batch:
                call.error = error
        with self._lock:
            self._running = False
            self._lock.notify_all()
            for call in batch:
                call.slot.expected = call.key if call.slot in self._slots else None
            following = self._next()
        for call in batch:
            call.woken.set()
        if following is not None:
            self._delegate(following)

    def _run(self, batch: list[_DenoiserCall]) -> None:
        first = batch[0]
        whose = [(call.slot.mix, call.count) for call in batch]
        self.forwards += 1
        self.rows += sum(call.count for call in batch)
        if len(batch) == 1:  # the pipeline's own arguments, so the output is bit-identical
            first.answer = self._answer(whose, unflatten(first.flat, first.nested))
            return
        joined = {name: torch.cat([call.expanded(name) for call in batch]) for name in first.rows}
        answer = self._answer(whose, unflatten(first.flat | joined, first.nested))
        for call, sample in zip(batch, answer[0].split([call.count for call in batch]), strict=True):
            call.answer = (sample,) if isinstance(answer, tuple) else type(answer)(sample=sample)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """While the context is open no forward runs or starts; one thread at a time."""
        with self._lock:
            self._lock.wait_for(lambda: not self._paused)
            self._paused = True
            self._lock.wait_for(lambda: not self._running)
        try:
            yield
        finally:
            with self._lock:
                self._paused = False
                self._lock.notify_all()
            self.slot_left()


class Slot:
    """One picture's place in the batcher. ``module`` replaces the denoiser in a pipeline.

    ``mix`` is the picture's adapter mix, passed to `Forward`; ``max_rows`` is the maximum number of rows of a forward of its size.
    """

    def __init__(self, batcher: DenoiserBatcher) -> None:
        self.mix: Any = None
        self.max_rows = 1
        self.expected: Hashable = None  # the key of the call that is about to come, between two steps
        self._batcher = batcher
        self._stopped = threading.Event()
        self._seen: dict[int, tuple[Tensor, bytes]] = {}
        # It shares parameters and submodules. Hooks are removed: they run on the denoiser itself.
        module = copy(batcher.denoiser)
        for name, value in vars(module).items():
            if name.endswith("_hooks") and isinstance(value, OrderedDict):
                vars(module)[name] = OrderedDict()
        vars(module).pop("_diffusers_hook", None)
        vars(module)["forward"] = self._forward
        self.module = module

    @contextmanager
    def taken(self, mix: Any, max_rows: int, stopped: threading.Event) -> Iterator[None]:
        """Occupy the slot for one picture, from encoding to decoding; after ``stopped`` is set, the next step raises `PictureCancelled`."""
        self.mix, self.max_rows, self._stopped = mix, max_rows, stopped
        with self._batcher._lock:
            self._batcher._slots.add(self)
        try:
            yield
        finally:
            with self._batcher._lock:
                self._batcher._slots.discard(self)
            self.mix = None
            self._seen.clear()
            self._leave()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While the context is open the picture does long work elsewhere, and no forward waits for it."""
        self._leave()
        yield

    def check(self) -> None:
        """Raises `PictureCancelled` when the picture was cancelled."""
        if self._stopped.is_set():
            raise PictureCancelled

    def _leave(self) -> None:
        self.expected = None
        self._batcher.slot_left()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        self.check()
        return self._batcher.call(self._as_call(args, kwargs))

    def _as_call(self, args: Sequence[Any], kwargs: dict[str, Any]) -> _DenoiserCall:
        flat, nested = flatten(bound(type(self.module), args, kwargs))
        latents, *_ = per_sample = self._batcher.per_sample
        rows = {name: flat[name] for name in per_sample if isinstance(flat.get(name), Tensor)}
        shapes = tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in rows.items())
        others = tuple((name, self._identity(value)) for name, value in flat.items() if name not in rows)
        return _DenoiserCall(self, rows, flat, nested, len(rows[latents]), (shapes, others, tuple(nested.items())))

    def _identity(self, value: Any) -> Hashable:
        """A key that is equal for equal values: two calls can be joined only when their shared arguments are equal."""
        if isinstance(value, Tensor):
            if len(self._seen) > SEEN:
                self._seen.clear()
            if id(value) not in self._seen:  # the tensor is kept alive, so that its id is not reused
                data = value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
                self._seen[id(value)] = (value, hashlib.sha256(data).digest())
            return value.shape, value.dtype, self._seen[id(value)][1]
        try:
            hash(value)
        except TypeError:
            return id(value)
        return value
