"""Runs as a caller sees them: how a run stands, what happens in it, what it asks a person, how it ended.

Plain data of no particular method: a stage, a phase and a number have names that the method gave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from sfumato.types import Region


class StrictRecord(BaseModel):
    """An immutable record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ShownPicture(StrictRecord):
    """A picture to show: its SHA-256 in the artifact store, the text it was painted from, the advice about it and its scores."""

    caption: str
    digest: str
    regions: tuple[Region, ...] = ()
    scores: dict[str, float] = {}


class Event(StrictRecord):
    """How far a stage of a run is; a later event of the same phase, iteration and stage replaces it.

    ``number`` orders the events of one execution; ``time`` is seconds since 1970. ``phase`` is a part of the method that is passed
    once (``iteration`` 0), or a loop (``iteration`` from 1). ``metrics`` is the result of a finished stage in numbers, ``shown`` the
    newest pictures of this phase and iteration, ``outcome`` the summary of a finished iteration in one line.
    """

    number: int
    time: float
    phase: str
    iteration: int
    stage: str
    # Micro-batches or tasks: finished, in all, and how many of the finished ones have been done before.
    done: int
    total: int
    reused: int
    # How many of the finished ones are dead letters: they failed at every try, and the run continues without them.
    dead_lettered: int = 0
    note: str = ""
    metrics: dict[str, Any] = {}
    shown: tuple[ShownPicture, ...] = ()
    outcome: str = ""

    @property
    def whole(self) -> bool:
        """Whether the stage is finished."""
        return self.done == self.total

    @property
    def section(self) -> tuple[str, int]:
        """The phase and the iteration that the event belongs to."""
        return self.phase, self.iteration


def section_name(phase: str, iteration: int) -> str:
    """A phase, with the number of its iteration where it is a loop."""
    return f"{phase} {iteration}" if iteration else phase


class DeadLettered(StrictRecord):
    """What a phase (and iteration, 0 outside of a loop) continued without, because its tasks failed at every try.

    ``lost`` counts what was lost by kind, such as ``{"samples": 8}``.
    """

    phase: str
    iteration: int
    reason: str
    lost: dict[str, int]

    def __str__(self) -> str:
        counts = [f"{count} {kind}" for kind, count in self.lost.items() if count]
        return f"{' and '.join(counts)} of {section_name(self.phase, self.iteration)} lost: {self.reason}"


class Outcome(StrictRecord):
    """How a run ended. ``files`` maps the name of every file of a finished run to its SHA-256 in the artifact store."""

    state: Literal["finished", "failed", "cancelled"]
    stop_reason: str = ""
    error: str = ""
    hint: str = ""
    files: dict[str, str] = {}
    dead_lettered: tuple[DeadLettered, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, content: Any) -> Any:
        """Outcomes of sfumato 0.1 name samples and pairs, and call what follows the loop iteration 0."""
        if not isinstance(content, dict) or "set_aside" not in content:
            return content
        content = dict(content)
        content["dead_lettered"] = [
            {
                "phase": "iteration" if row["iteration"] else "comparison",
                "iteration": row["iteration"],
                "reason": row["reason"],
                "lost": {kind: row[key] for kind, key in (("samples", "samples"), ("trainings", "pairs")) if row[key]},
            }
            for row in content.pop("set_aside")
        ]
        return content


class RunState(Enum):
    """The state of a run; see ``RunState`` in the contract."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSING = "pausing"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens until a caller asks for it."""
        return self in (RunState.FINISHED, RunState.FAILED, RunState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Ended:
    """An outcome, and when it was written."""

    outcome: Outcome
    at: datetime


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run stands. ``waiting`` counts the questions that wait for a person, ``note`` says what to do, ``remaining`` is an estimate.

    ``models`` maps each part of the run to the version of its weights; ``driver`` is the replica that executes the run.
    """

    id: str
    state: RunState
    submitted: datetime
    models: Mapping[str, str]
    note: str = ""
    waiting: int = 0
    driver: str = ""
    latest: Event | None = None
    remaining: timedelta | None = None
    ended: Ended | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a run asks a person: whether the last of ``pictures`` is clearly better than the first.

    ``prompt`` is what they were painted from, ``asked`` the same before the run reworded it. ``id`` is that of the task whose result is
    the answer.
    """

    id: str
    phase: str
    iteration: int
    prompt: str
    asked: str
    seed: int
    pictures: tuple[ShownPicture, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a person to a question."""

    question_id: str
    accepted: bool
    reason: str = ""
