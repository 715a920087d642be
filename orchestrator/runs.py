"""Runs on record: what each was asked for and how it ended, in the artifact store under ``runs/<id>/``. This is the truth; what the
bus knows of runs is about the present moment only (see `orchestrator.index`), and may be lost.

    runs/<id>/record.json      spec, prompts, versions of the weights; written once, when the run is submitted first
    runs/<id>/outcome.json     how it ended; of a run that failed or was cancelled it is taken away when the run goes on
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.events import Event
from orchestrator.recipes.artaug import Model, Plan
from orchestrator.spec import PromptSets, RunSpec, held
from sfumato.errors import NotFound, WrongState
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Json

FOLDER = "runs/"
RECORD, OUTCOME = "record.json", "outcome.json"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Strict):
    """A model of the run: the version of its weights, and the reference by which any machine finds them."""

    version: str
    reference: str


class Record(_Strict):
    """All that a run's result depends on. ``trace`` are the headers of the call that submitted it."""

    spec: Json
    prompts: dict[str, tuple[str, ...]]
    models: dict[str, Weights]
    trace: dict[str, str] = {}


    def plan(self) -> Plan:
        """What the engine runs by."""
        models = {part: Model(weights.version, weights.reference) for part, weights in self.models.items()}
        sets = {name: held(prompts, len(prompts)) for name, prompts in self.prompts.items()}
        return Plan(RunSpec.model_validate(self.spec), PromptSets(**sets), models)


class SetAside(_Strict):
    """What an iteration (0: the comparison) went on without, and why."""

    iteration: int
    reason: str
    samples: int
    pairs: int


class Outcome(_Strict):
    """How a run ended. ``files`` are names and SHA-256 of everything a finished run came to."""

    state: Literal["finished", "failed", "cancelled"]
    stop_reason: str = ""
    error: str = ""
    hint: str = ""
    files: dict[str, str] = {}
    set_aside: tuple[SetAside, ...] = ()


class State(Enum):
    """Where a run is; see ``RunState`` in the contract."""

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
        """Whether nothing more comes unless somebody asks for it."""
        return self in (State.FINISHED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True, slots=True)
class Ended:
    """An outcome, and when it was written."""

    outcome: Outcome
    at: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run stands; ``waiting`` counts pairs that wait for a person, ``note`` says what to do, ``remaining`` is an estimate."""

    id: str
    state: State
    submitted: datetime
    models: Mapping[str, str]
    note: str = ""
    waiting: int = 0
    driver: str = ""
    latest: Event | None = None
    remaining: timedelta | None = None
    ended: Ended | None = None


class Records:
    """The runs in an artifact store. Synchronous: each call is a round trip or a few."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    def begin(self, name: str, record: Record) -> bool:
        """Put a run on record unless it is; of several submissions at once, one does it. Whether this one did."""
        return self._artifacts.create_key(_key(name, RECORD), record.model_dump_json().encode())

    def record(self, name: str) -> tuple[Record, datetime]:
        """What a run was asked for, and when it was submitted first.

        Raises:
            NotFound: there is no such run.
        """
        found = self._artifacts.read_stamped(_key(name, RECORD))
        if found is None:
            raise NotFound(f"There is no run {name}.", hint="The ids: sfumato runs ls")
        return Record.model_validate_json(found[0]), found[1]

    def outcome(self, name: str) -> Ended | None:
        """How a run ended; None where it has not."""
        found = self._artifacts.read_stamped(_key(name, OUTCOME))
        return None if found is None else Ended(Outcome.model_validate_json(found[0]), found[1])

    def end(self, name: str, outcome: Outcome) -> Outcome:
        """Write how a run ended; the outcome that stands. The first does, except that what is finished has not failed."""
        data = outcome.model_dump_json().encode()
        while not self._artifacts.create_key(_key(name, OUTCOME), data):
            stands = self.outcome(name)
            if stands is None:
                continue  # taken away this moment
            if outcome.state == "finished" and stands.outcome.state == "failed":
                self._artifacts.write_key(_key(name, OUTCOME), data)
                return outcome
            return stands.outcome
        return outcome

    def reopen(self, name: str) -> None:
        """Let a run that failed or was cancelled go on; nothing to do where it has not ended.

        Raises:
            WrongState: it is finished.
        """
        stands = self.outcome(name)
        if stands is not None and stands.outcome.state == "finished":
            raise WrongState(f"The run {name} is finished.", hint="Its files: sfumato runs show ID --files FOLDER")
        self._artifacts.delete_key(_key(name, OUTCOME))

    def page(self, size: int, token: str = "") -> tuple[list[str], str]:
        """Ids of up to so many runs, the newest first, and where the next page begins; empty where there is none."""
        stamped = [
            (round(written.timestamp() * 1e6), key.split("/")[1])
            for key, written in self._artifacts.stamped(FOLDER)
            if key.endswith(f"/{RECORD}") and key.count("/") == 2
        ]
        if token:
            moment, _, name = token.partition(".")
            stamped = [run for run in stamped if run < (int(moment), name)]
        stamped.sort(reverse=True)
        chosen = stamped[:size]
        more = "{}.{}".format(*chosen[-1]) if len(stamped) > size else ""
        return [name for _, name in chosen], more


def _key(name: str, part: str) -> str:
    return f"{FOLDER}{name}/{part}"
