"""Writes the finished stages of a run and its interruption to its journal."""

from __future__ import annotations

from types import TracebackType

from sfumato.runs.records import Event
from sfumato.runtime.journal import RunJournal


class JournalWriter:
    """Writes events to a journal. Use it in a ``with`` block."""

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._section: tuple[str, int] | None = None

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self._section is not None:  # records the time since the last finished stage
            self._journal.write(*self._section, "stopped", reason=kind.__name__)

    def write(self, event: Event) -> None:
        """Write the event if its stage is finished and had tasks or metrics."""
        self._section = event.section
        if event.whole and (event.total or event.metrics):
            counts = {"done": event.done, "total": event.total, "reused": event.reused}
            counts |= {"dead_lettered": event.dead_lettered} if event.dead_lettered else {}
            self._journal.write(*event.section, event.stage, **counts, **event.metrics)
