"""The latest events of a run, written by the thread that executes it and read by the one that publishes them."""

from __future__ import annotations

import threading

from sfumato.runs.records import Event


class LatestEvents:
    """The latest event of every stage, by section of the run: a phase, or an iteration of a loop, numbered from 1 as they begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[tuple[str, int], int] = {}
        self._stages: dict[int, dict[str, Event]] = {}
        self._new: set[int] = set()
        self.latest: Event | None = None

    def put(self, event: Event) -> None:
        """Store an event; it replaces the previous one of its stage."""
        with self._lock:
            number = self._numbers.setdefault(event.section, len(self._numbers) + 1)
            stages = self._stages.setdefault(number, {})
            stages.pop(event.stage, None)
            stages[event.stage] = event
            self._new.add(number)
            self.latest = event

    def take(self) -> dict[int, list[Event]]:
        """All events of the sections with new ones, by the section's number; only the newest pictures are kept."""
        with self._lock:
            taken = {number: list(self._stages[number].values()) for number in sorted(self._new)}
            self._new.clear()
        return {number: _with_newest_pictures(events) for number, events in taken.items()}

    def renew(self) -> None:
        """Mark everything as new: published events may be lost."""
        with self._lock:
            self._new.update(self._stages)


def _with_newest_pictures(events: list[Event]) -> list[Event]:
    newest = next((event for event in reversed(events) if event.shown), None)
    return [event if event is newest or not event.shown else event.model_copy(update={"shown": ()}) for event in events]
