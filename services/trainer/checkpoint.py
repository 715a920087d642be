"""The state of a training, as safetensors: a worker that is killed continues from it and ends in the same bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sfumato.errors import BrokenWeights

# Between the name of a fit and that of a tensor in it; in no module's name.
MARK = "|"
RESTART = "Delete it: the training then starts from the beginning."

FitState: TypeAlias = Mapping[str, Tensor]


class Checkpoint(Protocol):
    """Keeps one blob for one training; its owner deletes it when the training is done."""

    # Seconds of work between two saves, multiplied by the seconds that a save takes where that is more than one.
    interval: float

    def load(self) -> bytes | None:
        """The last saved blob, or None."""
        ...

    def save(self, data: bytes) -> None:
        """Replace the blob atomically."""
        ...


@dataclass(frozen=True, slots=True)
class FitStep:
    """One step of a fit: the fit's name, its steps done and in all, the inputs it still trains and their mean loss in the step."""

    fit: str
    done: int
    total: int
    pairs: int
    loss: float


OnStep: TypeAlias = Callable[[FitStep], object] | None
"""Is called with every step; an exception it raises ends the training."""


class LoadedCheckpoint:
    """A checkpoint whose content was read before, by the leader for all processes; only the leader has one to ``keep`` it in."""

    def __init__(self, data: bytes | None, keep: Checkpoint | None) -> None:
        self._data, self._keep = data, keep
        self.interval = math.inf if keep is None else keep.interval

    def load(self) -> bytes | None:
        """See `Checkpoint`."""
        return self._data

    def save(self, data: bytes) -> None:
        """See `Checkpoint`."""
        if self._keep is not None:
            self._keep.save(data)


class FitJournal:
    """The fits of one training by name, finished or in progress, each as the tensors it can be continued from.

    The order of fits depends on their results alone, so a training that is started again passes through the fits that are finished here
    without computing.
    """

    def __init__(self, checkpoint: Checkpoint | None, on_step: OnStep = None) -> None:
        """Read the checkpoint, if there is one; ``on_step`` is called with every step.

        Raises:
            BrokenWeights: it is damaged, or no checkpoint of a training.
        """
        self._checkpoint = checkpoint
        self._on_step = on_step
        self._fits: dict[str, FitState] = {}
        data = None if checkpoint is None else checkpoint.load()
        for key, tensor in ({} if data is None else _decode(data)).items():
            fit, _, name = key.partition(MARK)
            # Cloned: tensors in the blob are unaligned, and products of unaligned numbers round differently.
            self._fits[fit] = {**self._fits.get(fit, {}), name: tensor.clone()}
        self._due = time.monotonic() + (0.0 if checkpoint is None else checkpoint.interval)

    def recall(self, fit: str) -> FitState | None:
        """The state of the fit, or None if it has not begun."""
        return self._fits.get(fit)

    def report(self, step: FitStep) -> None:
        """Pass a finished step to ``on_step``. Raises: what ``on_step`` raises."""
        if self._on_step is not None:
            self._on_step(step)

    def save_if_due(self, fit: str, state: Callable[[], FitState]) -> None:
        """Save the state of the fit if the interval has passed."""
        if self._checkpoint is not None and time.monotonic() >= self._due:
            self._fits[fit] = state()
            started = time.monotonic()
            tensors = {f"{name}{MARK}{key}": t.contiguous().cpu() for name, held in self._fits.items() for key, t in held.items()}
            self._checkpoint.save(save(tensors))
            ended = time.monotonic()
            self._due = ended + self._checkpoint.interval * max(1.0, ended - started)

    def finish(self, fit: str, state: FitState) -> None:
        """Keep the final state of a fit for the next checkpoint."""
        if self._checkpoint is not None:
            self._fits[fit] = state


def _decode(data: bytes) -> dict[str, Tensor]:
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise BrokenWeights(f"The checkpoint of a training is damaged: {error}.", hint=RESTART) from error
    if not all(MARK in key for key in tensors):
        raise BrokenWeights("The checkpoint of a training holds something else.", hint=RESTART)
    return tensors
