"""What a person sees of a run: a line a stage, the share kept, the first pair as soon as there is one."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from orchestrator import engine
    from orchestrator.recipes.artaug import Sample
    from sfumato.runtime.artifacts import ArtifactStore


class RunProgress:
    """Live on a terminal; a line for every finished stage elsewhere."""

    def __init__(self, console: Console, folder: Path, artifacts: ArtifactStore) -> None:
        self._console, self._folder, self._artifacts = console, folder, artifacts
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._lines: dict[str, TaskID] = {}
        self._finished: set[str] = set()
        self._first_pair = False
        self._started = time.monotonic()

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def show(self, event: engine.Progress) -> None:
        """Take an event of the engine in."""
        samples: tuple[Sample, ...] = event.samples  # pyright: ignore[reportAssignmentType]
        note = f"{event.reused} reused" if event.reused else ""
        if event.stage == "filter" and event.done == event.total:
            kept = sum(sample.verdict == "kept" for sample in samples)
            note = f"{kept} of {len(samples)} kept ({kept / len(samples):.0%})"
        total = max(1, event.total)
        if event.stage not in self._lines:
            self._lines[event.stage] = self._progress.add_task(event.stage, total=total, note=note)
        self._progress.update(self._lines[event.stage], completed=event.done if event.total else 1, note=note)
        if event.done == event.total and event.stage not in self._finished and (event.total or note):
            self._finished.add(event.stage)
            if not self._console.is_terminal:
                seconds = time.monotonic() - self._started
                self._console.print(f"{seconds:6.0f} s  {event.stage}: {event.done}/{event.total} {note}".rstrip())
        if not self._first_pair:
            self._show_first_pair(samples)

    def _show_first_pair(self, samples: tuple[Sample, ...]) -> None:
        sample = next((sample for sample in samples if sample.before and sample.after), None)
        if sample is None or sample.before is None or sample.after is None:
            return
        import numpy as np

        from sfumato.cli.ground import drawn
        from sfumato.runtime.images import decode_image, write_png

        before = drawn(decode_image(self._artifacts.get(sample.before.picture)), sample.regions)
        after = drawn(decode_image(self._artifacts.get(sample.after.picture)), ())
        after = np.pad(after, ((0, before.shape[0] - after.shape[0]), (0, 0), (0, 0)), constant_values=255)
        path = self._folder / "first-pair.png"
        write_png(np.concatenate([before, after], axis=1), path)
        self._first_pair = True
        self._console.print(f"{time.monotonic() - self._started:6.0f} s  first pair: {path}  ({sample.prompt})")
