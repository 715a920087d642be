"""From a spec, or the record of a run that was begun, to its plan."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.models import find_models
from orchestrator.spec import PromptSets, RunSpec, held, load_spec, read_prompt_sets, run_id

from orchestrator.recipes.artaug import Plan
from sfumato.errors import InvalidInput
from sfumato.runtime.settings import Settings

RECORD = "run.json"


def planned(path: Path, settings: Settings) -> tuple[Plan, Path]:
    """The plan of a spec, and the folder of its run.

    Raises:
        InvalidInput: the spec or its prompts cannot be used.
        MissingWeights: a model is not here and cannot be fetched.
    """
    spec = load_spec(path)
    prompts = read_prompt_sets(spec)
    models = find_models(spec, _here(settings))
    name = run_id(spec, prompts, {part: model.version for part, model in models.items()})
    return Plan(spec, prompts, models), settings.runs / name


def find_run(name: str, settings: Settings) -> Path:
    """The folder of a run that was begun.

    Raises:
        InvalidInput: there is none of this name.
    """
    folder = settings.runs / name
    if not name or Path(name).name != name or not (folder / RECORD).is_file():
        raise InvalidInput("run", f"there is no run {name!r} in {settings.runs}.", hint="Its id is the name of its folder there.")
    return folder


def recorded(folder: Path, settings: Settings) -> Plan:
    """The plan of a run from its record; the spec and the files of its prompts are not needed any more.

    Raises:
        InvalidInput: the weights are not those the run began with.
    """
    record = read_record(folder)
    spec = RunSpec.model_validate(record.spec)
    models = find_models(spec, _here(settings))
    changed = [name for name, model in models.items() if model.version != record.models.get(name, {}).get("version")]
    if changed:
        raise InvalidInput("resume", f"the weights of {', '.join(changed)} changed since the run began.", hint="Start a new run.")
    sets = {name: held(prompts, len(prompts)) for name, prompts in record.prompts.items()}
    return Plan(spec, PromptSets(**sets), models)


@dataclass(frozen=True, slots=True)
class Record:
    """What ``--resume`` needs: the run without its files."""

    spec: dict
    prompts: dict[str, list[str]]
    models: dict[str, dict[str, str]]
    finished: bool


def read_record(folder: Path) -> Record:
    """The record in a run's folder."""
    return Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))


def write_record(plan: Plan, folder: Path, *, finished: bool) -> None:
    """Put the record into a run's folder, at once or not at all."""
    prompts = {name: list(prompts) for name, prompts in asdict(plan.prompts).items()}
    models = {name: asdict(model) for name, model in plan.models.items()}
    record = Record(plan.spec.model_dump(mode="json"), prompts, models, finished)
    temporary = folder / f"{RECORD}.tmp"
    temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD)


def _here(settings: Settings) -> Settings:
    """The settings of a run on this machine, where a model may be a folder."""
    return settings.model_copy(update={"model_folders": True})
