"""A run as a client submits it: the spec as text, the prompts with it. All that is wrong with it is said at once, field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.models import find_models, stamp
from orchestrator.runs import Record, Weights
from orchestrator.spec import METRICS, PromptSets, RunSpec, run_id
from sfumato.errors import Faults, InvalidInput, SfumatoError
from sfumato.runtime.models.hub import is_hub_name
from sfumato.runtime.models.references import VISTA, model_folder, present_folder
from sfumato.runtime.settings import Settings
from sfumato.vista import weights

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 16
"""Levels of a spec; it has three."""
SETS = {"prompts": "train", "tune": "tune", "evaluate": "heldout"}
"""A part of the spec that counts prompts -> the set that brings them."""
BUILT_IN = tuple(metric for metric in METRICS if metric in weights.PARTS)
"""Metrics that Vista has weights for."""
OWN_WEIGHTS = ("nudenet",)
"""Metrics whose package brings its weights along."""
_NAMED = re.compile(r"(?:Value error, )?([a-z_]+): (.*)", re.DOTALL)

Fault = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Submission:
    """A run that can work: its id, and what is put on record of it."""

    id: str
    record: Record


def submission(text: str, prompts: Mapping[str, Sequence[str]], settings: Settings) -> Submission:
    """The run of a spec (YAML or JSON) and its sets of prompts: train, tune, heldout, ceiling.

    The spec's ``file`` and ``ceiling`` name the sets in the report, and are no paths. Models must be on this machine: nothing is
    fetched here.

    Raises:
        Faults: everything that is wrong with it; fields of the spec begin with ``spec.``, those of the prompts with ``prompts.``.
    """
    content = _parsed(text)
    sets = {name: [prompt.strip() for prompt in prompts.get(name, ())] for name in ("train", "tune", "heldout", "ceiling")}
    named = _with_names(content, sets)
    spec, faults = _spec(named)
    faults += [*_paths(content), *_prompts(content, sets), *_models(content, settings)]
    if spec is None or faults:
        raise Faults(list(dict.fromkeys(faults)))
    chosen = PromptSets(
        tuple(sets["train"][: spec.prompts.count]),
        tuple(sets["tune"][: spec.tune.count]) if spec.tune else (),
        tuple(sets["heldout"][: spec.evaluate.count]),
        tuple(sets["ceiling"][: spec.evaluate.count]),
    )
    try:
        models = find_models(spec, settings)
    except SfumatoError as error:  # what was here a moment ago
        raise Faults([("spec.model", str(error))]) from error
    name = run_id(spec, chosen, {part: model.version for part, model in models.items()})
    known = {part: Weights(version=model.version, reference=model.reference) for part, model in models.items()}
    return Submission(name, Record(spec=spec.model_dump(mode="json"), prompts=asdict(chosen), models=known))


def _parsed(text: str) -> dict[str, Any]:
    """The text as a mapping. What would grow when it is read, or is nested without end, is refused before."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise Faults([("spec", "it has an alias (*); write things out.")])
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise Faults([("spec", f"it is nested more than {DEEPEST} levels deep.")])
        content = yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise Faults([("spec", f"this is not YAML: {' '.join(str(error).split())[:300]}")]) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise Faults([("spec", "this is no mapping of keys to values; see configs/ for examples.")])
    return content


def _with_names(content: dict[str, Any], sets: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The spec with a name for every set of prompts, as the report has them."""
    named = dict(content)
    for part, name in SETS.items():
        if isinstance(named.get(part), dict):
            named[part] = {"file": f"{name}.txt"} | named[part]
    if sets["ceiling"] and isinstance(named.get("evaluate"), dict):
        named["evaluate"] = {"ceiling": "ceiling.txt"} | named["evaluate"]
    return named


def _spec(content: dict[str, Any]) -> tuple[RunSpec | None, list[Fault]]:
    """The spec, or what pydantic finds wrong with it."""
    try:
        return RunSpec.model_validate(content), []
    except ValidationError as error:
        faults = []
        for fault in error.errors(include_input=False, include_url=False):
            field, words = ".".join(["spec", *map(str, fault["loc"])]), fault["msg"]
            if fault["type"] == "value_error" and (named := _NAMED.fullmatch(words)):
                field, words = f"{field}.{named[1]}", named[2]
            faults.append((field, f"{words}."))
        return None, faults


def _paths(content: dict[str, Any]) -> Iterator[Fault]:
    for part in SETS:
        for key in ("file", "ceiling"):
            value = _at(content, part, key)
            if isinstance(value, str) and (PurePosixPath(value).name != value or PureWindowsPath(value).name != value):
                words = "it is a path, and no file is read here: the prompts come with the request, this is their name in the report."
                yield f"spec.{part}.{key}", words


def _prompts(content: dict[str, Any], sets: Mapping[str, Sequence[str]]) -> Iterator[Fault]:
    """Sets that are too short, have blanks, or share prompts."""
    for part, name in SETS.items():
        count, prompts = _at(content, part, "count"), sets[name]
        if isinstance(count, int) and len(prompts) < count:
            yield f"prompts.{name}", f"{len(prompts)} prompts came, and the spec's {part}.count asks for {count}."
        if part not in content and prompts:
            yield f"prompts.{name}", f"{len(prompts)} prompts came, and the spec has no {part}."
    count = _at(content, "evaluate", "count")
    named = isinstance(_at(content, "evaluate", "ceiling"), str)
    if isinstance(count, int) and (named or sets["ceiling"]) and len(sets["ceiling"]) < count:
        yield "prompts.ceiling", f"{len(sets['ceiling'])} prompts came, and the spec's evaluate.count asks for {count}."
    for name, prompts in sets.items():
        blank = next((index for index, prompt in enumerate(prompts) if not prompt), None)
        if blank is not None:
            yield f"prompts.{name}", f"the prompt at {blank} is blank."

    def used(part: str) -> set[str]:
        count = _at(content, part, "count")
        return set(sets[SETS[part]][: max(count, 0) if isinstance(count, int) else None])

    for part, other in (("evaluate", "prompts"), ("evaluate", "tune"), ("tune", "prompts")):
        shared = used(part) & used(other) - {""}
        if shared:
            yield f"prompts.{SETS[part]}", f"{len(shared)} of its prompts are in {SETS[other]} as well, such as {min(shared)[:80]!r}."


def _models(content: dict[str, Any], settings: Settings) -> Iterator[Fault]:
    """Models that are not known here, are folders, or are missing."""
    models, metrics = _at(content, "score", "models"), _at(content, "score", "metrics")
    named = {metric: reference for metric, reference in models.items() if metric in METRICS} if isinstance(models, dict) else {}
    references = [("spec.model", content.get("model", VISTA), "generator")]
    references += [("spec.ground.model", _at(content, "ground", "model") or VISTA, "understanding")]
    references += [(f"spec.score.models.{metric}", reference, metric) for metric, reference in named.items()]
    for field, reference, part in references:
        if isinstance(reference, str):
            fault = _missing(reference, part, settings)
            if fault:
                yield field, fault
    for metric in metrics if isinstance(metrics, list) else ():
        if metric in METRICS and metric not in (*BUILT_IN, *OWN_WEIGHTS, *named):
            yield f"spec.score.models.{metric}", "this metric has no weights of its own: name some, as OWNER/NAME."


def _missing(reference: str, part: str, settings: Settings) -> str:
    """What is wrong with a reference to a model; empty where it is here."""
    if reference != VISTA and not is_hub_name(reference) and not settings.model_folders:
        return f"{reference[:200]!r} is neither \"vista\" nor a name on the hub (OWNER/NAME), and folders of a client mean nothing here."
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


def _at(content: dict[str, Any], part: str, key: str) -> Any:
    """A value of a part of the spec, None where there is none, whatever it was given for."""
    section = content.get(part)
    return section.get(key) if isinstance(section, dict) else None
