"""Validates a spec with its prompts, and builds the run's id and record. All faults are reported together, by field."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from orchestrator.recipes.inputs import held, value_at
from orchestrator.recipes.models import Model, ScorerModels, find_models, stamp
from orchestrator.recipes.spec import METRICS, RunSpec, nested_exclusion, references
from orchestrator.runs.records import Record, Weights
from orchestrator.runs.specs import AnyRecipe, Content, Fault, parsed, recipe_of, validated, with_prompts
from sfumato.errors import Faults, InvalidInput, SfumatoError
from sfumato.runtime.models.hub import is_hub_name
from sfumato.runtime.models.references import VISTA, model_folder, present_folder
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import canonical
from sfumato.texts import normalised, same_key
from sfumato.vista import weights

BUILT_IN = tuple(metric for metric in METRICS if metric in weights.PARTS)
"""Metrics that Vista has weights for."""
OWN_WEIGHTS = ("nudenet",)
"""Metrics whose package includes its weights."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A valid run: its id and its record."""

    id: str
    record: Record


def submission_of_file(path: Path, settings: Settings) -> Submission:
    """The run of a spec's file on this machine, where a model may be a folder.

    Raises:
        InvalidInput: the spec or its prompts cannot be used.
        MissingWeights, BrokenWeights: a model is not on this machine and cannot be fetched, or its files are damaged.
    """
    content, inputs = with_prompts(path, anchor=True)
    return _submission(content, inputs, settings.model_copy(update={"model_folders": True}), fetch=True)


def submission(text: str, inputs: Mapping[str, Sequence[str]], settings: Settings) -> Submission:
    """The run of a spec (YAML or JSON) and its sets of prompts by name, as a client submits it.

    File names in the spec are labels for the report, not paths. Models must be on this machine: none are fetched.

    Raises:
        Faults: all invalid fields; those of the spec begin with ``spec.``, those of the prompts with ``inputs.``.
    """
    return _submission(parsed(text), inputs, settings, fetch=False)


def check_prompts(content: Content, inputs: Mapping[str, Sequence[str]], recipe: AnyRecipe) -> None:
    """Check that the sets of prompts are large enough, and that disjoint sets share no prompt.

    Raises:
        Faults: all sets that are not.
    """
    sets = {wanted.name: inputs.get(wanted.name, ()) for wanted in recipe.inputs}
    faults = list(_prompt_faults(content, sets, recipe))
    if faults:
        raise Faults(faults)


def check_weights(record: Record, settings: Settings) -> None:
    """Check that the weights on this machine, where a model may be a folder, are the ones that a run began with.

    Raises:
        InvalidInput: they changed.
        MissingWeights, BrokenWeights: a model is not on this machine and cannot be fetched, or its files are damaged.
    """
    models = find_models(record.recipe.models(record.checked_spec()), settings.model_copy(update={"model_folders": True}))
    changed = [part for part, model in models.items() if part not in record.models or model.version != record.models[part].version]
    if changed:
        raise InvalidInput("resume", f"the weights of {', '.join(changed)} changed since the run began.", hint="Start a new run.")


def run_id(recipe: AnyRecipe, spec: RunSpec, inputs: Mapping[str, Sequence[str]], models: Mapping[str, Model]) -> str:
    """The spec's name and a hash of everything that the result depends on: submitting the same run again continues it."""
    places = [path for path, _ in references(recipe.spec)]
    places += [(wanted.section, wanted.key) for wanted in recipe.inputs]
    places += [(section,) for section in spec.unused()]
    content = {
        "spec": spec.model_dump(mode="json", exclude=nested_exclusion(iter(places))),
        "prompts": {name: list(prompts) for name, prompts in inputs.items()},
        "models": {part: model.version for part, model in models.items()},
    }
    return f"{spec.name}-{hashlib.sha256(canonical(content)).hexdigest()[:10]}"


def _submission(content: Content, given: Mapping[str, Sequence[str]], settings: Settings, *, fetch: bool) -> Submission:
    recipe = recipe_of(content)
    inputs = {wanted.name: [normalised(prompt) for prompt in given.get(wanted.name, ())] for wanted in recipe.inputs}
    spec, faults = validated(_with_names(content, inputs, recipe), recipe)
    faults += [*_unknown(given, recipe), *_paths(content, recipe), *_prompt_faults(content, inputs, recipe)]
    faults += [*(_references(content, recipe, settings) if not fetch else ()), *_without_weights(content, spec, recipe)]
    if spec is None or faults:
        raise Faults(list(dict.fromkeys(faults)))
    known = spec.model_dump(mode="json")
    chosen = {wanted.name: inputs[wanted.name][: wanted.count(known) or 0] for wanted in recipe.inputs}
    try:
        models = find_models(recipe.models(spec), settings)
    except SfumatoError as error:
        if fetch:
            raise
        raise Faults([("spec.model", str(error))]) from error  # it was deleted in between
    sets = {name: tuple(held(prompts, len(prompts))) for name, prompts in chosen.items()}
    record = Record(
        spec=known,
        inputs=sets,
        models={part: Weights(version=model.version, reference=model.reference) for part, model in models.items()},
    )
    return Submission(run_id(recipe, spec, sets, models), record)


def _with_names(content: Content, inputs: Mapping[str, Sequence[str]], recipe: AnyRecipe) -> Content:
    """The spec with a name for every set of prompts, as the report shows them."""
    named = dict(content)
    for wanted in recipe.inputs:
        section = named.get(wanted.section)
        if isinstance(section, dict) and (inputs[wanted.name] or not wanted.optional):
            named[wanted.section] = {wanted.key: wanted.file_name} | section
    return named


def _unknown(given: Mapping[str, Sequence[str]], recipe: AnyRecipe) -> Iterator[Fault]:
    known = [wanted.name for wanted in recipe.inputs]
    for name in given:
        if name not in known:
            yield f"inputs.{name[:40]}", f"{recipe.name} reads no such set of prompts; it reads {', '.join(known)}."


def _paths(content: Content, recipe: AnyRecipe) -> Iterator[Fault]:
    for wanted in recipe.inputs:
        value = value_at(content, wanted.section, wanted.key)
        if isinstance(value, str) and (PurePosixPath(value).name != value or PureWindowsPath(value).name != value):
            words = "it is a path, and no file is read here: the prompts come with the request, this is their name in the report."
            yield f"spec.{wanted.section}.{wanted.key}", words


def _prompt_faults(content: Content, inputs: Mapping[str, Sequence[str]], recipe: AnyRecipe) -> Iterator[Fault]:
    """Faults of sets that are too short, have blanks, or share prompts."""
    for wanted in recipe.inputs:
        count, prompts = wanted.count(content), inputs[wanted.name]
        used = isinstance(value_at(content, wanted.section, wanted.key), str) or bool(prompts) if wanted.optional else True
        if count is not None and used and len(prompts) < count:
            words = f"{len(prompts)} prompts were given, and {wanted.section}.count of the spec asks for {count}."
            yield f"inputs.{wanted.name}", words
        if wanted.section not in content and prompts:
            yield f"inputs.{wanted.name}", f"{len(prompts)} prompts were given, and the spec has no section {wanted.section}."
        blank = next((index for index, prompt in enumerate(prompts) if not prompt), None)
        if blank is not None:
            yield f"inputs.{wanted.name}", f"the prompt at {blank} is blank."
    named = {wanted.name: {same_key(prompt) for prompt in inputs[wanted.name][: wanted.count(content)]} for wanted in recipe.inputs}
    for wanted in recipe.inputs:
        for other in wanted.apart_from:
            shared = named[wanted.name] & named[other] - {""}
            if shared:
                yield f"inputs.{wanted.name}", f"{len(shared)} of its prompts are in {other} as well, such as {min(shared)[:80]!r}."


def _references(content: Content, recipe: AnyRecipe, settings: Settings) -> Iterator[Fault]:
    """Faults of models that are unknown, are folders, or are missing."""
    for path, mark in references(recipe.spec):
        value: Any = content
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if mark.part:
            named = {mark.part: VISTA if value is None else value}
        else:
            named = {part: name for part, name in value.items() if part in METRICS} if isinstance(value, dict) else {}
        for part, reference in named.items():
            fault = _missing(reference, part, settings) if isinstance(reference, str) else ""
            if fault:
                yield ".".join(["spec", *path, *([] if mark.part else [part])]), fault


def _without_weights(content: Content, spec: RunSpec | None, recipe: AnyRecipe) -> Iterator[Fault]:
    """Faults of metrics without weights."""
    for metric, named in _metrics(content, spec, recipe):
        if metric in METRICS and metric not in (*BUILT_IN, *OWN_WEIGHTS, *named):
            yield f"spec.score.models.{metric}", "this metric has no weights of its own: name some, as OWNER/NAME."


def _metrics(content: Content, spec: RunSpec | None, recipe: AnyRecipe) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The metrics of a run and their named weights; for an invalid spec, as far as its content names them."""
    if spec is not None:
        for needed in recipe.models(spec):
            if isinstance(needed, ScorerModels):
                yield from ((metric, dict(needed.named)) for metric in needed.metrics)
        return
    metrics, named = value_at(content, "score", "metrics"), value_at(content, "score", "models")
    for metric in metrics if isinstance(metrics, list) else ():
        if isinstance(metric, str):
            yield metric, named if isinstance(named, dict) else {}


def _missing(reference: str, part: str, settings: Settings) -> str:
    """The fault of a reference to a model; empty if the model is on this machine."""
    if reference != VISTA and not is_hub_name(reference) and not settings.model_folders:
        return f'{reference[:200]!r} is neither "vista" nor a name on the hub (OWNER/NAME), and folders of a client are not accepted.'
    if reference == VISTA and part not in ("generator", "understanding", *BUILT_IN):
        return "Vista has no weights for it: name some, as OWNER/NAME."
    if reference == VISTA:
        return _vista(part, settings.weights, stamp(settings))
    try:
        if present_folder(reference, part, settings) is None:
            return f"{reference[:200]} is not on the orchestrator's machine, and is not fetched for a request. Fetch it there first."
    except InvalidInput as error:
        return str(error).removeprefix(f"{error.field}: ")
    except SfumatoError as error:
        return str(error)
    return ""


@lru_cache(maxsize=64)
def _vista(part: str, root: Path | None, _: tuple[int, ...]) -> str:
    try:
        model_folder(VISTA, part, Settings(weights=root))
    except SfumatoError as error:
        return str(error)
    return ""
