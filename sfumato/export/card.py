"""The model card (Mitchell et al. 2019) in the hub's format: a YAML header, and text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from sfumato.registry.records import Lineage, Version

Nodes = Mapping[str, list[Mapping[str, Any]]]
"""What is recorded of the things of a lineage, by their kind."""
METRICS = {
    "heldout_aesthetic": "aesthetic score of pictures of held-out prompts, 1 to 10",
    "heldout_clip": "agreement of these pictures with their prompts by CLIP, cosine x 100",
    "heldout_pickscore": "PickScore of these pictures",
    "heldout_mps": "MPS, overall preference, of these pictures",
}
"""Words for the metrics that every method records of held-out pictures."""


@dataclass(frozen=True, slots=True)
class MethodCard:
    """What a method tells a model card about itself; its recipe holds it, and the caller hands it over by the recipe's name.

    Attributes:
        summary: one sentence on how the method trains.
        iteration: a format string over what the lineage records of an iteration, such as ``"{kept} of {prompts} pairs kept"``.
        data: format strings with the numbers ``{pairs}``, ``{prompts}`` and ``{diverged}``; lines of the section on the data.
        metrics: words for the metrics that only this method records, by name.
    """

    summary: str
    iteration: str = ""
    data: tuple[str, ...] = ("{pairs} pairs of pictures of {prompts} prompts; {diverged} diverged in training",)
    metrics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence: an identifier of the hub (``apache-2.0``), or ``other`` with a name and a link to its text."""

    id: str = "other"
    name: str = ""
    link: str = ""


def model_card(
    version: Version,
    lineage: Lineage,
    files: Mapping[str, str],
    licence: Licence,
    example: str,
    methods: Mapping[str, MethodCard] | None = None,
) -> str:
    """The card of a version.

    Args:
        version: the registered version.
        lineage: its whole lineage.
        files: the files beside the card, each with a description.
        licence: of the export; the base model's licence applies, too.
        example: Python code that paints a picture.
        methods: by the name of the recipe, for the recipes of the runs in the lineage. A recipe without one is told by its name only.
    """
    header: dict[str, Any] = {"license": licence.id}
    header |= {f"license_{field}": value for field, value in (("name", licence.name), ("link", licence.link)) if value}
    header |= {
        "base_model": version.base.name,
        "base_model_relation": "adapter" if version.parts else "finetune",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "lora", "sfumato"],
    }
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for node in lineage.nodes:
        nodes.setdefault(node.kind, []).append(node.content)
    methods = methods or {}
    used = [methods.get(recipe, MethodCard(recipe)) for recipe in recipes_of(lineage)]
    sections = [
        f"# {version.base.name}, version {version.id[:12]}",
        version.note,
        _section("Base", [f"`{version.base.name}`, weights `{version.base.id}` (SHA-256 of its files' names and contents)"]),
        _section("Method", _method(version, nodes, used)),
        _section("Data", _data(nodes, used)),
        _section("Metrics", _metrics(version.metrics, used)),
        _section("Licence", _licence(licence, version.base.name)),
        _section("Files", [f"`{name}`: {words}" for name, words in files.items()]),
        "## Use\n\n" + "\n".join(f"    {line}" for line in example.splitlines()),
        _section("Version", [f"`{version.id}`", *(f"adapter `{part.adapter}`, weight {part.weight:g}" for part in version.parts)]),
    ]
    words = "\n\n".join(section for section in sections if section)
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{words}\n"


def recipes_of(lineage: Lineage) -> list[str]:
    """The names of the recipes of all runs in the lineage, sorted."""
    return sorted({str(node.content["recipe"]) for node in lineage.nodes if node.kind == "run" and node.content.get("recipe")})


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines)


def _method(version: Version, nodes: Nodes, used: Sequence[MethodCard]) -> list[str]:
    if not version.parts:
        return ["the base model itself; nothing was trained"]
    lines = [method.summary for method in used] or ["an adapter that was registered without its history"]
    for iteration in sorted(nodes.get("iteration", ()), key=lambda content: content.get("index", 0)):
        told = "; ".join(method.iteration.format_map(_OrNone(iteration)) for method in used if method.iteration)
        lines.append(f"iteration {iteration.get('index')}" + (f": {told}" if told else ""))
    for merge in nodes.get("merge", ()):
        lines.append(f"merged from {len(merge.get('sources', ()))} versions ({merge.get('how')}, rank {merge.get('rank') or 'exact'})")
    for run in nodes.get("run", ()):
        libraries = ", ".join(f"{name} {number}" for name, number in sorted(run.get("libraries", {}).items()))
        lines.append(f"run `{run.get('id')}`; seeds {run.get('seeds')}; made with {libraries}")
    lines.append("the adapter's update is added to the base's linear layers; fused, as in `model/`, it costs nothing at inference")
    return lines


class _OrNone(dict[str, Any]):
    """A mapping for `str.format_map` in which an absent name is None."""

    def __missing__(self, name: str) -> None:
        return None


def _data(nodes: Nodes, used: Sequence[MethodCard]) -> list[str]:
    pairs = nodes.get("pair", ())
    if not pairs:
        return ["nothing is recorded"]
    diverged = sum(bool(pair.get("diverged")) for pair in pairs)
    words = Counter(str(prompt.get("text", "")) for prompt in nodes.get("prompt", ()))
    numbers = {"pairs": len(pairs), "prompts": len(words), "diverged": diverged}
    templates = dict.fromkeys(template for method in used or (MethodCard(""),) for template in method.data)
    lines = [template.format_map(numbers) for template in templates]
    return [*lines, *(f"for instance: {text}" for text in sorted(words)[:3])]


def _metrics(metrics: Mapping[str, float], used: Sequence[MethodCard]) -> list[str]:
    known = METRICS | {name: words for method in used for name, words in method.metrics.items()}
    told = {name: f" ({words})" for name, words in known.items()}
    return [f"`{name}` = {value:.4g}{told.get(name, '')}" for name, value in metrics.items()] or ["none are recorded"]


def _licence(licence: Licence, base: str) -> list[str]:
    own = licence.name or licence.id
    told = f"{own}, {licence.link}" if licence.link else own
    held = f"the licence of the base model `{base}` holds for everything that is made from it"
    return [held] if licence.id == "other" and not licence.name else [told, held]
