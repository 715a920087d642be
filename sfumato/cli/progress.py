"""What a person sees of a run: where it stands, the share kept, how long it will take, the latest pair; and the journal of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from orchestrator import engine
    from orchestrator.recipes.artaug import Sample, State
    from sfumato.runtime.artifacts import ArtifactStore
    from sfumato.runtime.journal import Journal
    from sfumato.types import Image

# The journal counts the comparison after the last iteration under this number, and so do its seconds.
COMPARISON = 0


class RunProgress:
    """Live on a terminal, a line for every finished stage elsewhere; the journal has a line for each either way.

    Use it in a ``with`` block. ``first-pair.png`` and ``latest-pair.png`` in the run's folder show X with its advice beside X'.
    """

    def __init__(self, console: Console, folder: Path, artifacts: ArtifactStore, journal: Journal) -> None:
        self._console, self._artifacts, self._journal = console, artifacts, journal
        self._first, self._latest = folder / "first-pair.png", folder / "latest-pair.png"
        columns = (
            TextColumn("{task.description:>12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._lines: dict[str, TaskID] = {}
        self._finished: set[str] = set()
        self._iteration: int | None = None
        self._comparing = False
        self._shown: Sample | None = None
        self._drawn_at = -math.inf
        self._began = self._iteration_began = time.monotonic()
        self._took = 0.0

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()
        if kind is not None and self._iteration is not None:  # so that the time since the last finished stage is not lost
            self._journal.write(self._iteration, "stopped", reason=kind.__name__)

    def show(self, event: engine.Progress) -> None:
        """Take an event of the engine in."""
        state: State = event.state  # pyright: ignore[reportAssignmentType]
        self._begin(event, state)
        whole = event.done == event.total
        note = _note(event, state, whole)
        total = max(1, event.total)
        if event.stage not in self._lines:
            self._lines[event.stage] = self._bars.add_task(event.stage, total=total, note=note)
        self._bars.update(self._lines[event.stage], completed=event.done if event.total else 1, total=total, note=note)
        self._show_pair(state)
        if whole and event.stage not in self._finished:
            self._finished.add(event.stage)
            self._finish(event, state, note)

    def _begin(self, event: engine.Progress, state: State) -> None:
        """Clear the lines where the event is the first of another iteration, or of the comparison."""
        self._comparing |= event.stage == "naive"
        concluded = event.stage == "finish" and event.done == event.total  # the state has it among the finished ones already
        current = COMPARISON if self._comparing else len(state.iterations) + (0 if concluded else 1)
        if current == self._iteration:
            return
        now = time.monotonic()
        if self._iteration is not None:
            self._took = now - self._iteration_began
        self._iteration, self._iteration_began = current, now
        self._finished.clear()
        for line in self._lines.values():
            self._bars.remove_task(line)
        self._lines.clear()
        if self._comparing:
            if state.fused:
                self._say("comparison with naive training")
        else:
            self._say(f"iteration {current}" + (f", about {_clock(self._took)} if it takes as long as the last" if self._took > 1 else ""))

    def _finish(self, event: engine.Progress, state: State, note: str) -> None:
        """A line in the journal, and where nothing is live, one for the reader."""
        assert self._iteration is not None
        metrics = {} if self._comparing and not event.total else _metrics(event.stage, state)
        if event.total or metrics:
            self._journal.write(self._iteration, event.stage, done=event.done, total=event.total, reused=event.reused, **metrics)
            if not self._console.is_terminal:
                where = "comparison" if self._comparing else f"iteration {self._iteration}"
                counts = f" {event.done}/{event.total}" if event.total else ""
                self._say(f"{where}  {event.stage}{counts}  {note}")
        if event.stage == "finish":
            self._say(_outcome(state))

    def _show_pair(self, state: State) -> None:
        """Draw the newest pair that has both pictures, if it is another than last time; not more than once a second."""
        sample = next((sample for sample in reversed(state.samples) if sample.before and sample.after), None)
        if sample is None or (self._shown is not None and sample.after == self._shown.after):
            return
        if time.monotonic() - self._drawn_at < 1:
            return  # the next event will find it
        self._drawn_at = time.monotonic()
        from sfumato.runtime.images import write_png

        path = self._latest if self._first.is_file() else self._first
        picture = self._drawn(sample)
        write_png(picture, self._latest)
        if path is self._first:
            write_png(picture, self._first)
        if path is self._first or self._shown is None:
            what = f"first pair: {path}  (from now on, {self._latest.name} beside it)" if path is self._first else f"latest pair: {path}"
            self._say(f"{what}  {sample.prompt}")
        self._shown = sample

    def _drawn(self, sample: Sample) -> Image:
        import numpy as np

        from sfumato.cli.ground import drawn
        from sfumato.runtime.images import decode_image

        assert sample.before is not None and sample.after is not None
        before = drawn(decode_image(self._artifacts.get(sample.before.picture)), sample.regions)
        after = drawn(decode_image(self._artifacts.get(sample.after.picture)), ())
        after = np.pad(after, ((0, before.shape[0] - after.shape[0]), (0, 0), (0, 0)), constant_values=255)
        return np.concatenate([before, after], axis=1)

    def _say(self, words: str) -> None:
        self._console.print(f"{_clock(time.monotonic() - self._began):>8}  {words}".rstrip(), soft_wrap=True, markup=False, highlight=False)


def _note(event: engine.Progress, state: State, whole: bool) -> str:
    """What is worth saying beside a stage's bar."""
    notes = [f"{event.reused} reused"] if event.reused else []
    metrics = _metrics(event.stage, state) if whole else {}
    if event.stage == "filter" and "kept" in metrics:
        notes.append(f"{metrics['kept']} of {len(state.samples)} kept ({metrics['kept_share']:.0%})")
    elif event.stage == "choose" and metrics:
        notes.append(f"alpha {metrics['alpha']:g}" if metrics["alpha"] else "no alpha is any good")
    elif event.stage in ("score", "measure") and metrics:
        names = {"before": "X", "after": "X'"}
        values = {name: value for name, value in metrics.items() if name.startswith("aesthetic") and value is not None}
        if values:
            notes.append("aesthetic " + ", ".join(f"{names.get(name[10:], name[10:])} {value:.2f}" for name, value in values.items()))
    elif event.stage == "train" and metrics.get("diverged"):
        notes.append(f"{metrics['diverged']} diverged")
    return ", ".join(notes)


def _metrics(stage: str, state: State) -> dict[str, Any]:
    """What a finished stage came to, in numbers."""
    samples, trial = state.samples, state.trial
    match stage:
        case "ground":
            rejected = sum(bool(sample.rejected) for sample in samples)
            return {"regions": sum(len(sample.regions) for sample in samples), "rejected": rejected}
        case "score":
            return {
                "aesthetic_before": _mean(sample.scores_before["aesthetic"] for sample in samples if sample.scores_before),
                "aesthetic_after": _mean(sample.scores_after["aesthetic"] for sample in samples if sample.scores_after),
            }
        case "resemble":
            return {"image_cosine": _mean(sample.cosine for sample in samples if sample.cosine is not None)}
        case "filter":
            kept = sum(sample.verdict == "kept" for sample in samples)
            return {"kept": kept, "kept_share": kept / len(samples)}
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
            return {"kept": len(state.iterations[-1].kept), "stop_reason": state.stop_reason}
    return {}


def _outcome(state: State) -> str:
    """An iteration in a line, when its bars are about to go."""
    last = state.iterations[-1]
    words = [f"iteration {last.index}: {len(last.kept)} of {len(last.samples)} kept ({len(last.kept) / len(last.samples):.0%})"]
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


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
