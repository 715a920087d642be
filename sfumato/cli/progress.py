"""The progress of a run on the console: its stages, their notes, the time that is left, the latest pictures. It is made from events
alone, so that a local run and a remote one look the same."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sfumato.drawing import side_by_side
from sfumato.runs.records import Event, ShownPicture, section_name
from sfumato.runtime.images import decode_image, write_png


class RunProgress:
    """Progress bars on a terminal; elsewhere a line for every finished stage, and one after ``every`` seconds without. Use it in a
    ``with`` block.

    ``first-pair.png`` and ``latest-pair.png`` in ``folder`` have the pictures of an event side by side, with the advice about them;
    ``fetch`` gets a picture's bytes by their SHA-256.
    """

    def __init__(self, console: Console, folder: Path, fetch: Callable[[str], bytes], every: float = 30.0) -> None:
        self._console, self._fetch, self._every = console, fetch, every
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
        self._section: tuple[str, int] | None = None
        self._shown: tuple[ShownPicture, ...] = ()
        self._drawn_at = -math.inf
        self._began = self._section_began = self._said_at = time.monotonic()
        self._now = "waiting for the first stage"
        self._ended = threading.Event()
        self._repeating = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> RunProgress:
        self._bars.start()
        if not self._console.is_terminal:
            self._repeating.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._repeating.ident is not None:
            self._repeating.join()
        self._bars.stop()

    def show(self, event: Event) -> None:
        """Show an event."""
        self._begin(event)
        total = max(1, event.total)
        if event.stage not in self._lines:
            self._lines[event.stage] = self._bars.add_task(event.stage, total=total, note=event.note)
        self._bars.update(self._lines[event.stage], completed=event.done if event.total else 1, total=total, note=event.note)
        if event.shown:
            self._show_pictures(event.shown)
        counts = f" {event.done}/{event.total}" if event.total else ""
        self._now = f"{section_name(*event.section)}  {event.stage}{counts}  {event.note}"
        if event.whole and (event.total or event.metrics) and not self._console.is_terminal:
            self._say(self._now)
        if event.outcome:
            self._say(event.outcome)

    def _begin(self, event: Event) -> None:
        """Clear the bars if the event is the first one of another phase or iteration that has anything to show."""
        if event.section == self._section or not (event.total or event.metrics or event.outcome):
            return
        now = time.monotonic()
        took = now - self._section_began if self._section is not None and self._section[0] == event.phase else 0.0
        self._section, self._section_began = event.section, now
        for line in self._lines.values():
            self._bars.remove_task(line)
        self._lines.clear()
        self._say(section_name(*event.section) + (f", about {clock(took)} if it takes as long as the last" if took > 1 else ""))

    def _show_pictures(self, pictures: tuple[ShownPicture, ...]) -> None:
        """Draw the pictures unless they are the last ones that were drawn; at most once a second."""
        if pictures == self._shown or time.monotonic() - self._drawn_at < 1:
            return  # the next event has them, or newer ones
        self._drawn_at = time.monotonic()
        first = not self._first.is_file()
        image = side_by_side([(decode_image(self._fetch(picture.digest)), picture.regions) for picture in pictures])
        write_png(image, self._latest)
        if first:
            write_png(image, self._first)
            self._say(f"first pair: {self._first}  (from now on, {self._latest.name} beside it)  {pictures[0].caption}")
        elif not self._shown:
            self._say(f"latest pair: {self._latest}  {pictures[0].caption}")
        self._shown = pictures

    def _repeat(self) -> None:
        """Print the latest event, or that there is none yet, whenever nothing was printed for a while."""
        while not self._ended.wait(max(0.0, self._said_at + self._every - time.monotonic())):
            if time.monotonic() >= self._said_at + self._every:
                self._say(self._now)

    def _say(self, words: str) -> None:
        self._said_at = time.monotonic()
        self._console.print(f"{clock(time.monotonic() - self._began):>8}  {words}".rstrip(), soft_wrap=True, markup=False, highlight=False)


def clock(seconds: float) -> str:
    """A duration in minutes and seconds, or seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
