"""Reads run specs: parses and validates YAML or JSON text, and reads the prompts from the files that it names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.recipes.catalog import DEFAULT, recipe_named
from orchestrator.recipes.inputs import held, prompts_in, value_at
from orchestrator.recipes.recipe import Recipe
from orchestrator.recipes.spec import RunSpec, references
from sfumato.errors import Faults, InvalidInput
from sfumato.texts import read_text

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 16
"""Maximum nesting of a spec; valid ones have three levels."""
_NAMED = re.compile(r"(?:Value error, )?([a-z_.]+): (.*)", re.DOTALL)

_SURROGATES = re.compile(r"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")

AnyRecipe = Recipe[Any, Any, Any]
Content = dict[str, Any]
Fault = tuple[str, str]


def parsed(text: str) -> Content:
    """A spec's text as a mapping. Aliases, which can expand, and too deep nesting are refused first.

    Raises:
        Faults: the text is not a mapping in YAML.
    """
    text = _SURROGATES.sub(_joined, text.removeprefix("\ufeff"))
    try:
        depth = 0
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise Faults([("spec", "it has an alias (*); write the value out.")])
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise Faults([("spec", f"it is nested more than {DEEPEST} levels deep.")])
        content = yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise Faults([("spec", f"this is not YAML: {' '.join(str(error).split())[:300]}")]) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise Faults([("spec", "this is no mapping of keys to values; see configs/ for examples.")])
    return content


def _joined(pair: re.Match[str]) -> str:
    """A character beyond the first 65536, which JSON writes as two escapes and YAML does not read so."""
    return json.loads(f'"{pair[0]}"')


def recipe_of(content: Mapping[str, Any]) -> AnyRecipe:
    """The method of a spec.

    Raises:
        Faults: there is no such method.
    """
    name = content.get("recipe", DEFAULT)
    try:
        return recipe_named(name if isinstance(name, str) else str(name))
    except InvalidInput as error:
        raise Faults([("spec.recipe", str(error).removeprefix(f"{error.field}: "))]) from error


def validated(content: Mapping[str, Any], recipe: AnyRecipe) -> tuple[RunSpec | None, list[Fault]]:
    """The validated spec, or None with a fault for every invalid field."""
    try:
        return recipe.spec.model_validate(content), []
    except ValidationError as error:
        faults = []
        for fault in error.errors(include_input=False, include_url=False):
            field, words = ".".join(["spec", *map(str, fault["loc"])]), fault["msg"]
            if fault["type"] == "value_error" and (named := _NAMED.fullmatch(words)):
                field, words = f"{field}.{named[1]}", named[2]
            faults.append((field, f"{words}."))
        return None, faults


def load_spec(path: Path) -> tuple[AnyRecipe, RunSpec]:
    """The method and the spec in a file, the paths in it made relative to the file's folder.

    Raises:
        InvalidInput: no such file, not YAML, an unknown key, a value out of range: every fault is named by its field.
    """
    content = _anchored(_read(path), path.parent)
    recipe = recipe_of(content)
    spec, faults = validated(content, recipe)
    if spec is None:
        raise Faults(faults)
    return recipe, spec


def with_prompts(path: Path, *, anchor: bool) -> tuple[Content, dict[str, Sequence[str]]]:
    """The content of a spec's file, with the names of the files of prompts instead of their paths, and the prompts.

    ``anchor``: references to models that are folders are made relative to the spec's folder. All that is wrong otherwise is for
    `orchestrator.runs.submission` to find.

    Raises:
        InvalidInput: no such file, not YAML, or a file of prompts that cannot be read.
    """
    content = _read(path)
    recipe, inputs = recipe_of(content), {}
    if anchor:
        content = _anchored(content, path.parent)
    for wanted in recipe.inputs:
        name = value_at(content, wanted.section, wanted.key)
        if isinstance(name, str):
            file, count = path.parent / name, wanted.count(content)
            inputs[wanted.name] = held(prompts_in(file, count, wanted.field), count or 0)
            content[wanted.section] = content[wanted.section] | {wanted.key: file.name}
    return content, inputs


def submittable(path: Path) -> tuple[str, dict[str, list[str]]]:
    """The submission of a spec's file by a client: its text without paths, and its prompts by the name of their set.

    Raises:
        InvalidInput: see `with_prompts`.
    """
    content, inputs = with_prompts(path, anchor=False)
    return json.dumps(content, default=str, ensure_ascii=False), {name: list(prompts) for name, prompts in inputs.items()}


def _read(path: Path) -> Content:
    if not path.is_file():
        raise InvalidInput("spec", f"there is no file {path}.", hint="See configs/ for examples.")
    return parsed(read_text(path, "spec"))


def _anchored(content: Content, here: Path) -> Content:
    """The content with the files and folders that it names made relative to ``here``."""
    recipe = recipe_of(content)

    def folder(name: Any) -> Any:
        return str(here / name) if isinstance(name, str) and name and (here / name).is_dir() else name

    content = json.loads(json.dumps(content, default=str))
    for path, mark in references(recipe.spec):
        section = _section(content, path[:-1])
        if section is None or path[-1] not in section:
            continue
        value = section[path[-1]]
        if mark.part:
            section[path[-1]] = folder(value)
        elif isinstance(value, dict):
            section[path[-1]] = {part: folder(name) for part, name in value.items()}
    return content


def _section(content: Content, path: Sequence[str]) -> Content | None:
    for key in path:
        content = content.get(key)  # pyright: ignore[reportAssignmentType]
        if not isinstance(content, dict):
            return None
    return content
