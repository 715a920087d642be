"""Writes the finished stages of a run into its journal, and where it was interrupted."""

from __future__ import annotations

from types import TracebackType

from sfumato.runs.records import Event
from sfumato.runtime.journal import RunJournal


class JournalWriter:
    """Writes events into a journal. Use it in a ``with`` block."""

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._section: tuple[str, int] | None = None

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self._section is not None:  # so that the time since the last finished stage is not lost
            self._journal.write(*self._section, "stopped", reason=kind.__name__)

    def write(self, event: Event) -> None:
        """Write the event down if its stage is finished and had anything to do or to report."""
        self._section = event.section
        if event.whole and (event.total or event.metrics):
            counts = {"done": event.done, "total": event.total, "reused": event.reused}
            counts |= {"dead_lettered": event.dead_lettered} if event.dead_lettered else {}
            self._journal.write(*event.section, event.stage, **counts, **event.metrics)
