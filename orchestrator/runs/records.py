"""The records of runs in an artifact store under ``runs/<id>/``: the submission and the outcome. They are authoritative; the state of
runs on the bus (see `orchestrator.replica.index`) is transient and may be lost.

    runs/<id>/record.json      spec, prompts, versions of the weights; written once, at the first submission
    runs/<id>/outcome.json     the outcome; deleted when a failed or cancelled run continues
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from orchestrator.recipes.catalog import DEFAULT, recipe_named
from orchestrator.recipes.inputs import held
from orchestrator.recipes.models import Model
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.recipe import Recipe
from orchestrator.recipes.spec import RunSpec
from sfumato.errors import InvalidInput, NotFound, WrongState
from sfumato.runs.records import Ended, Outcome
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Json

FOLDER = "runs/"
RECORD, OUTCOME = "record.json", "outcome.json"
LOCAL_RECORD = "run.json"
"""The record of a local run of sfumato 0.1, in the run's own folder."""
_ID = re.compile(r"[a-z0-9-]+")
"""The characters of a run's id; other names are not runs, and are never used as a path."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Strict):
    """A model of the run: the version of its weights, and the reference by which any machine finds it."""

    version: str
    reference: str


class Record(_Strict):
    """Everything that the result of a run depends on. ``trace`` are the headers of the call that submitted it."""

    spec: Json
    inputs: dict[str, tuple[str, ...]]
    models: dict[str, Weights]
    trace: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, content: Any) -> Any:
        """Records of sfumato 0.1 call the inputs prompts; those of its local runs also say whether the run is finished."""
        if isinstance(content, dict) and "prompts" in content:
            content = {key: value for key, value in content.items() if key != "finished"}
            content["inputs"] = content.pop("prompts")
        return content

    @property
    def recipe(self) -> Recipe[Any, Any, Any]:
        """The method of the run. Raises `InvalidInput` if it is not installed."""
        return recipe_named(self.spec.get("recipe", DEFAULT))

    def checked_spec(self) -> RunSpec:
        """The spec as the method reads it. Raises `InvalidInput` where this installation's method does not accept it."""
        try:
            return self.recipe.spec.model_validate(self.spec)
        except ValidationError as error:
            words = f"the method {self.recipe.name} of this installation does not accept the recorded spec: {error.errors()[0]['msg']}."
            raise InvalidInput("spec", words, hint="Continue the run with the version of the method that began it.") from error

    def plan(self) -> Plan[Any]:
        """The plan for the engine. Raises as `checked_spec`."""
        models = {part: Model(weights.version, weights.reference) for part, weights in self.models.items()}
        inputs = {name: held(prompts, len(prompts)) for name, prompts in self.inputs.items()}
        return Plan(self.checked_spec(), inputs, models)


class Records:
    """The runs in an artifact store. Synchronous: each call takes one or a few round trips.

    ``folder`` holds the records of local runs of sfumato 0.1, if there are any: they are read there; new records go to the store.
    """

    def __init__(self, artifacts: ArtifactStore, folder: Path | None = None) -> None:
        self._artifacts, self._folder = artifacts, folder

    def begin(self, name: str, record: Record) -> bool:
        """Create the record of a run if there is none; whether this call created it (exactly one of concurrent calls does)."""
        return self._artifacts.create_key(_key(name, RECORD), record.model_dump_json().encode())

    def record(self, name: str) -> tuple[Record, datetime]:
        """The record of a run, and the time of its first submission.

        Raises:
            NotFound: there is no such run.
        """
        found = (self._artifacts.read_stamped(_key(name, RECORD)) or self._local(name)) if _ID.fullmatch(name) else None
        if found is None:
            raise NotFound(f"There is no run {name}.", hint="The ids: sfumato runs ls")
        return Record.model_validate_json(found[0]), found[1]

    def outcome(self, name: str) -> Ended | None:
        """The outcome of a run; None if it has not ended."""
        found = self._artifacts.read_stamped(_key(name, OUTCOME))
        if found is None:
            local = self._local(name)
            finished = local is not None and json.loads(local[0])["finished"]
            return Ended(Outcome(state="finished"), local[1]) if local is not None and finished else None
        return Ended(Outcome.model_validate_json(found[0]), found[1])

    def end(self, name: str, outcome: Outcome) -> Outcome:
        """Write the outcome of a run, and return the valid one: the first, except that "finished" replaces "failed"."""
        data = outcome.model_dump_json().encode()
        while not self._artifacts.create_key(_key(name, OUTCOME), data):
            stands = self.outcome(name)
            if stands is None:
                continue  # it was deleted in between
            if outcome.state == "finished" and stands.outcome.state == "failed":
                self._artifacts.write_key(_key(name, OUTCOME), data)
                return outcome
            return stands.outcome
        return outcome

    def reopen(self, name: str, *, finished: bool = False) -> None:
        """Delete the outcome of a run that failed or was cancelled, so that it continues; without effect on one that has not ended.

        ``finished``: allow it for a finished run as well, whose files are to be written again.

        Raises:
            WrongState: it is finished.
        """
        stands = self.outcome(name)
        if stands is not None and stands.outcome.state == "finished" and not finished:
            raise WrongState(f"The run {name} is finished.", hint=f"Its files: sfumato runs show {name} --files FOLDER")
        self._artifacts.delete_key(_key(name, OUTCOME))

    def page(self, size: int, token: str = "") -> tuple[list[str], str]:
        """Ids of up to ``size`` runs, the newest first, and the token of the next page; empty on the last."""
        stamped = [
            (round(written.timestamp() * 1e6), key.split("/")[1])
            for key, written in self._artifacts.stamped(FOLDER)
            if key.endswith(f"/{RECORD}") and key.count("/") == 2
        ]
        stored = {name for _, name in stamped}
        stamped += [run for run in self._local_runs() if run[1] not in stored]
        if token:
            moment, _, name = token.partition(".")
            stamped = [run for run in stamped if run < (int(moment), name)]
        stamped.sort(reverse=True)
        chosen = stamped[:size]
        more = "{}.{}".format(*chosen[-1]) if len(stamped) > size else ""
        return [name for _, name in chosen], more

    def _local(self, name: str) -> tuple[bytes, datetime] | None:
        """The record of a local run of sfumato 0.1, and when it was written last."""
        path = self._folder / name / LOCAL_RECORD if self._folder is not None and _ID.fullmatch(name) else None
        if path is None or not path.is_file():
            return None
        return path.read_bytes(), datetime.fromtimestamp(path.stat().st_mtime, UTC)

    def _local_runs(self) -> list[tuple[int, str]]:
        if self._folder is None:
            return []
        found = self._folder.glob(f"*/{LOCAL_RECORD}")
        return [(round(path.stat().st_mtime * 1e6), path.parent.name) for path in found]


def _key(name: str, part: str) -> str:
    return f"{FOLDER}{name}/{part}"
