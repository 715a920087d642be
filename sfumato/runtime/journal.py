"""A run's journal: one JSON object per line, appended over all sessions in which the run was started and resumed."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from io import TextIOWrapper
from pathlib import Path
from typing import Any


class RunJournal:
    """``metrics.jsonl``. Use it in a ``with`` block. After a crash the last line may be cut; it is ignored."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIOWrapper | None = None
        self._last = time.monotonic()

    def __enter__(self) -> RunJournal:
        cut = self._path.is_file() and not self._path.read_bytes().endswith(b"\n")
        self._file = self._path.open("a", encoding="utf-8")
        if cut:
            self._file.write("\n")
        self._last = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, phase: str, iteration: int, stage: str, **fields: Any) -> None:
        """Append an event; ``seconds`` is the time since the event before it, in this session."""
        assert self._file is not None, "the journal is not open"
        now = time.monotonic()
        event = {"time": round(time.time(), 3), "phase": phase, "iteration": iteration, "stage": stage}
        event |= {"seconds": round(now - self._last, 3), **fields}
        self._last = now
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()

    def events(self) -> list[dict[str, Any]]:
        """All events of all sessions, in order."""
        events = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # cut off by a crash
        return events

    def seconds(self) -> dict[int, float]:
        """Wall seconds spent in each iteration, over all sessions."""
        spent: dict[int, float] = defaultdict(float)
        for event in self.events():
            spent[event["iteration"]] += event["seconds"]
        return dict(spent)
