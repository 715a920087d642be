"""What a person sees of a run: where it stands, the share kept, how long it will take, the latest pair. It is shown events only, so
that a run on this machine and one that is watched from afar look the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from orchestrator.events import Event, Pair

    from sfumato.types import Image


class RunProgress:
    """Live on a terminal, a line for every finished stage elsewhere. Use it in a ``with`` block.

    ``first-pair.png`` and ``latest-pair.png`` in ``folder`` show X with its advice beside X'; ``fetch`` gets a picture's bytes by
    their SHA-256.
    """

    def __init__(self, console: Console, folder: Path, fetch: Callable[[str], bytes]) -> None:
        self._console, self._fetch = console, fetch
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
        self._iteration: int | None = None
        self._shown: Pair | None = None
        self._drawn_at = -math.inf
        self._began = self._iteration_began = time.monotonic()

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        """Take an event in."""
        self._begin(event)
        total = max(1, event.total)
        if event.stage not in self._lines:
            self._lines[event.stage] = self._bars.add_task(event.stage, total=total, note=event.note)
        self._bars.update(self._lines[event.stage], completed=event.done if event.total else 1, total=total, note=event.note)
        if event.pair is not None:
            self._show_pair(event.pair)
        if event.whole and (event.total or event.metrics) and not self._console.is_terminal:
            counts = f" {event.done}/{event.total}" if event.total else ""
            self._say(f"{_name(event)}  {event.stage}{counts}  {event.note}")
        if event.outcome:
            self._say(event.outcome)

    def _begin(self, event: Event) -> None:
        """Clear the lines where the event is the first of another iteration, or of the comparison."""
        if event.iteration == self._iteration or (_name(event) == COMPARISON and not event.total):
            return
        now = time.monotonic()
        took = 0.0 if self._iteration is None else now - self._iteration_began
        self._iteration, self._iteration_began = event.iteration, now
        for line in self._lines.values():
            self._bars.remove_task(line)
        self._lines.clear()
        if _name(event) == COMPARISON:
            self._say("comparison with naive training")
        else:
            self._say(_name(event) + (f", about {clock(took)} if it takes as long as the last" if took > 1 else ""))

    def _show_pair(self, pair: Pair) -> None:
        """Draw a pair, if it is another than last time; not more than one a second."""
        if pair == self._shown or time.monotonic() - self._drawn_at < 1:
            return  # the next event has it, or a newer one
        self._drawn_at = time.monotonic()
        from sfumato.runtime.images import write_png

        path = self._latest if self._first.is_file() else self._first
        picture = self._drawn(pair)
        write_png(picture, self._latest)
        if path is self._first:
            write_png(picture, self._first)
        if path is self._first or self._shown is None:
            what = f"first pair: {path}  (from now on, {self._latest.name} beside it)" if path is self._first else f"latest pair: {path}"
            self._say(f"{what}  {pair.prompt}")
        self._shown = pair

    def _drawn(self, pair: Pair) -> Image:
        import numpy as np

        from sfumato.cli.ground import drawn
        from sfumato.runtime.images import decode_image

        before = drawn(decode_image(self._fetch(pair.before)), pair.regions)
        after = drawn(decode_image(self._fetch(pair.after)), ())
        after = np.pad(after, ((0, before.shape[0] - after.shape[0]), (0, 0), (0, 0)), constant_values=255)
        return np.concatenate([before, after], axis=1)

    def _say(self, words: str) -> None:
        self._console.print(f"{clock(time.monotonic() - self._began):>8}  {words}".rstrip(), soft_wrap=True, markup=False, highlight=False)


COMPARISON = "comparison"


def _name(event: Event) -> str:
    return f"iteration {event.iteration}" if event.iteration else COMPARISON


def clock(seconds: float) -> str:
    """A time in words."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
