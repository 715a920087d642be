"""Builds events from the engine's progress and the metrics of the stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orchestrator.engine.stages import Barrier, PerBatch, Progress
from sfumato.runs.records import Event, ShownPicture
from sfumato.runtime.tasks import Json


class EventBuilder:
    """Builds an event from each progress report of one run. It accumulates over an iteration, so it must receive all reports."""

    def __init__(self, shown: Callable[[Any], tuple[ShownPicture, ...]]) -> None:
        """``shown`` gives the pictures that a sample can show; see `orchestrator.recipes.recipe.Recipe`."""
        self._shown_by = shown
        self._number = 0
        self._section: tuple[str, int] | None = None
        self._tallies: dict[str, _Tally] = {}
        self._shown: tuple[ShownPicture, ...] = ()

    def event(self, progress: Progress) -> Event:
        """The next event."""
        if (progress.phase, progress.iteration) != self._section:
            self._section, self._tallies, self._shown = (progress.phase, progress.iteration), {}, ()
        stage, tells = progress.stage, progress.stage.tells
        tally = self._tallies.setdefault(stage.name, _Tally(stage))
        tally.add(progress.samples)
        self._shown = next((shown for sample in reversed(progress.samples) if (shown := self._shown_by(sample))), self._shown)
        metrics: dict[str, Json] = {}
        if progress.whole:
            metrics = tally.metrics() | dict(tells.metrics(progress.state) if tells.metrics is not None else {})
        self._number += 1
        return Event(
            number=self._number,
            time=round(time.time(), 3),
            phase=progress.phase,
            iteration=progress.iteration,
            stage=stage.name,
            done=progress.done,
            total=progress.total,
            reused=progress.reused,
            dead_lettered=progress.dead_lettered,
            note=_note(progress, metrics),
            metrics=metrics,
            shown=self._shown,
            outcome=tells.outcome(progress.state) if progress.whole and tells.outcome is not None else "",
        )


class _Tally:
    """Sums and means over the samples that passed a stage in this iteration."""

    def __init__(self, stage: PerBatch | Barrier) -> None:
        self._tells = stage.tells
        self._sums = dict.fromkeys(self._tells.sums, 0)
        self._means = {name: (0.0, 0) for name in self._tells.means}

    def add(self, samples: Iterable[Any]) -> None:
        for sample in samples:
            for name, number in self._tells.sums.items():
                self._sums[name] += number(sample)
            for name, number in self._tells.means.items():
                value = number(sample)
                if value is not None:
                    total, count = self._means[name]
                    self._means[name] = total + value, count + 1

    def metrics(self) -> dict[str, Json]:
        """The sums, and the means; the mean of no samples is None."""
        return {**self._sums, **{name: round(total / count, 6) if count else None for name, (total, count) in self._means.items()}}


def _note(progress: Progress, metrics: Mapping[str, Json]) -> str:
    """The note beside the stage's progress."""
    notes = [f"{progress.reused} reused"] if progress.reused else []
    notes += [f"{progress.dead_lettered} lost"] if progress.dead_lettered else []
    if metrics and progress.stage.tells.note is not None:
        notes.append(progress.stage.tells.note(metrics, progress.state))
    return ", ".join(filter(None, notes))


def mean_of(values: Iterable[float]) -> float | None:
    """The mean, rounded to six digits; None for no values."""
    values = list(values)
    return round(math.fsum(values) / len(values), 6) if values else None
