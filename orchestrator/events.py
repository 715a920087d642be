"""What a person or a script is shown of a run while it goes on: small, the same for a run here and for one that is watched from afar.

The newest event of every stage of the current iteration is all that somebody who comes late must be given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from orchestrator.engine import Progress
from orchestrator.recipes.artaug import Sample, State
from orchestrator.recipes.artaug.state import KEPT, SET_ASIDE
from sfumato.runtime.tasks import Json
from sfumato.types import Region

if TYPE_CHECKING:
    from sfumato.runtime.journal import RunJournal

COMPARISON = 0
"""What follows the last iteration is told of under this number, in the journal too."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Strict):
    """X with the advice it was given, and X'; pictures by their SHA-256 in the artifact store."""

    prompt: str
    before: str
    after: str
    regions: tuple[Region, ...]


class Event(_Strict):
    """Where a stage stands. ``number`` orders the events of one telling; ``time`` is seconds since 1970.

    ``metrics`` is what a finished stage came to, ``pair`` the newest pair there was, ``outcome`` the line in which a finished
    iteration is summed up.
    """

    number: int
    time: float
    iteration: int
    stage: str
    # Micro-batches or tasks: through the stage, of how many, and how many of those were done before.
    done: int
    total: int
    reused: int
    # How many of them were set aside after several tries; the run goes on without.
    set_aside: int = 0
    note: str = ""
    metrics: dict[str, Json] = {}
    pair: Pair | None = None
    outcome: str = ""

    @property
    def whole(self) -> bool:
        """Whether the stage is finished."""
        return self.done == self.total


class Teller:
    """Makes an event of each of an engine's words on one run. What it adds up is an iteration's, so it must hear all of them."""

    def __init__(self) -> None:
        self._number = 0
        self._iteration = 1
        self._comparing = False
        self._tally = _Tally()
        self._pair: Pair | None = None

    def event(self, progress: Progress) -> Event:
        """The next event."""
        state: State = progress.state  # pyright: ignore[reportAssignmentType]
        self._comparing |= progress.stage == "naive"
        whole = progress.done == progress.total
        concluded = progress.stage == "finish" and whole  # the state has the iteration among the finished ones already
        current = COMPARISON if self._comparing else len(state.iterations) + (0 if concluded else 1)
        if current != self._iteration:
            self._iteration, self._tally, self._pair = current, _Tally(), None
        self._tally.add(progress.stage, progress.samples)
        self._pair = next((_pair(s) for s in reversed(progress.samples) if s.before and s.after), self._pair)
        metrics = self._metrics(progress.stage, state) if whole and (progress.total or not self._comparing) else {}
        self._number += 1
        return Event(
            number=self._number,
            time=round(time.time(), 3),
            iteration=current,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            reused=progress.reused,
            set_aside=progress.set_aside,
            note=_note(progress, metrics),
            metrics=metrics,
            pair=self._pair,
            outcome=_outcome(state) if concluded else "",
        )

    def _metrics(self, stage: str, state: State) -> dict[str, Any]:
        """What a finished stage came to, in numbers."""
        trial, tally = state.trial, self._tally
        match stage:
            case "ground":
                return {"regions": tally.regions, "rejected": tally.rejected}
            case "score":
                return {"aesthetic_before": tally.before.value, "aesthetic_after": tally.after.value}
            case "resemble":
                return {"image_cosine": tally.cosine.value}
            case "filter":
                kept = sum(sample.verdict == KEPT for sample in state.samples)
                return {"kept": kept, "kept_share": kept / len(state.samples)}
            case "train" if trial is not None:
                ends = [training.losses[-1] for training in trial.trainings if training.losses]
                return {"trained": len(trial.adapters), "diverged": len(trial.trainings) - len(trial.adapters), "last_loss": _mean(ends)}
            case "average" if trial is not None and trial.compression is not None:
                return dict(trial.compression)
            case "choose" if trial is not None and trial.candidates:
                tried = [{"alpha": c.alpha, "aesthetic": c.aesthetic, "clip": c.clip} for c in trial.candidates if c.pictures]
                return {"alpha": trial.alpha, "tried": tried}
            case "measure":
                sets = {"base": state.base, "tuned": trial.heldout if trial else None}
                return {
                    f"{metric}_{name}": _mean(row[metric] for row in heldout.scores)
                    for name, heldout in sets.items()
                    if heldout is not None and heldout.scores
                    for metric in heldout.scores[0]
                }
            case "finish" if state.iterations:
                return {"kept": state.iterations[-1].verdicts[KEPT], "stop_reason": state.stop_reason}
        return {}


class _Mean:
    """A mean of numbers that come one by one; None of nothing."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._sum, self._count = self._sum + value, self._count + 1

    @property
    def value(self) -> float | None:
        return round(self._sum / self._count, 6) if self._count else None


class _Tally:
    """What the samples of an iteration come to so far, added up as they pass, for nobody looks at all of them again."""

    def __init__(self) -> None:
        self.regions = self.rejected = 0
        self.before, self.after, self.cosine = _Mean(), _Mean(), _Mean()

    def add(self, stage: str, samples: Iterable[Sample]) -> None:
        for sample in samples:
            if stage == "ground":
                self.regions += len(sample.regions)
                self.rejected += bool(sample.rejected)
            elif stage == "score" and sample.scores_before and sample.scores_after:
                self.before.add(sample.scores_before["aesthetic"])
                self.after.add(sample.scores_after["aesthetic"])
            elif stage == "resemble" and sample.cosine is not None:
                self.cosine.add(sample.cosine)


class Keeper:
    """Writes a run's finished stages into its journal, and where it broke off. Use it in a ``with`` block."""

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._iteration: int | None = None

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self._iteration is not None:  # so that the time since the last finished stage is not lost
            self._journal.write(self._iteration, "stopped", reason=kind.__name__)

    def keep(self, event: Event) -> None:
        """Write a stage down if it is finished and there was something in it."""
        self._iteration = event.iteration
        if event.whole and (event.total or event.metrics):
            counts = {"done": event.done, "total": event.total, "reused": event.reused}
            counts |= {"set_aside": event.set_aside} if event.set_aside else {}
            self._journal.write(event.iteration, event.stage, **counts, **event.metrics)


def _pair(sample: Sample) -> Pair:
    assert sample.before is not None and sample.after is not None
    return Pair(prompt=sample.prompt, before=sample.before.picture, after=sample.after.picture, regions=sample.regions)


def _note(progress: Progress, metrics: dict[str, Any]) -> str:
    """What is worth saying beside a stage's bar."""
    notes = [f"{progress.reused} reused"] if progress.reused else []
    notes += [f"{progress.set_aside} set aside"] if progress.set_aside else []
    stage = progress.stage
    if stage == "filter" and "kept" in metrics:
        notes.append(f"{metrics['kept']} of {len(progress.state.samples)} kept ({metrics['kept_share']:.0%})")
    elif stage == "choose" and metrics:
        notes.append(f"alpha {metrics['alpha']:g}" if metrics["alpha"] else "no alpha is any good")
    elif stage in ("score", "measure") and metrics:
        names = {"before": "X", "after": "X'"}
        values = {name: value for name, value in metrics.items() if name.startswith("aesthetic") and value is not None}
        if values:
            notes.append("aesthetic " + ", ".join(f"{names.get(name[10:], name[10:])} {value:.2f}" for name, value in values.items()))
    elif stage == "train" and metrics.get("diverged"):
        notes.append(f"{metrics['diverged']} diverged")
    return ", ".join(notes)


def _outcome(state: State) -> str:
    """An iteration in a line, when it is over."""
    last = state.iterations[-1]
    verdicts, of = last.verdicts, len(last.samples)
    words = [f"iteration {last.index}: {verdicts[KEPT]} of {of} kept ({verdicts[KEPT] / of:.0%})"]
    words += [f"{verdicts[SET_ASIDE]} set aside"] if verdicts[SET_ASIDE] else []
    if last.trial is not None and last.trial.alpha:
        words.append(f"fused with alpha {last.trial.alpha:g}")
        if state.base is not None and last.trial.heldout is not None:
            base, tuned = (_mean(row["aesthetic"] for row in held.scores) for held in (state.base, last.trial.heldout))
            if base is not None and tuned is not None:
                words.append(f"aesthetic {base:.2f} -> {tuned:.2f} on held-out prompts")
    return ", ".join(words) + (f"; {state.stop_reason}" if state.stop_reason else "")


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return round(math.fsum(values) / len(values), 6) if values else None
