"""A model card (Mitchell et al. 2019) in the hub's format: a header of YAML that machines read, and words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from sfumato.registry.records import Lineage, Version

METRICS = {
    "alpha": "the strength at which the last iteration was added, chosen on tuning prompts",
    "heldout_aesthetic": "aesthetic score of pictures of held-out prompts, 1 to 10",
    "heldout_clip": "agreement of these pictures with their prompts by CLIP, cosine x 100",
    "heldout_pickscore": "PickScore of these pictures",
    "heldout_mps": "MPS, overall preference, of these pictures",
}
METHODS = {
    "artaug": "ArtAug: pictures were repainted under a vision-language model's advice, pairs that improved were kept, and their "
    "difference was trained into a LoRA, iteration after iteration",
}


@dataclass(frozen=True, slots=True)
class Licence:
    """An identifier the hub knows (``apache-2.0``), or ``other`` with a name and an address of its text."""

    id: str = "other"
    name: str = ""
    link: str = ""


def model_card(version: Version, lineage: Lineage, files: Mapping[str, str], licence: Licence, example: str) -> str:
    """The card of a version.

    Args:
        version: as the registry has it.
        lineage: everything it came of.
        files: what lies beside the card, with words for each.
        licence: of the whole; the base model's own holds besides.
        example: lines of Python that paint a picture.
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
    sections = [
        f"# {version.base.name}, version {version.id[:12]}",
        version.note,
        _section("Base", [f"`{version.base.name}`, weights `{version.base.id}` (SHA-256 of its files' names and contents)"]),
        _section("Method", _method(version, nodes)),
        _section("Data", _data(nodes)),
        _section("Metrics", _metrics(version.metrics)),
        _section("Licence", _licence(licence, version.base.name)),
        _section("Files", [f"`{name}`: {words}" for name, words in files.items()]),
        "## Use\n\n" + "\n".join(f"    {line}" for line in example.splitlines()),
        _section("Version", [f"`{version.id}`", *(f"adapter `{part.adapter}`, weight {part.weight:g}" for part in version.parts)]),
    ]
    words = "\n\n".join(section for section in sections if section)
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{words}\n"


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines)


def _method(version: Version, nodes: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    if not version.parts:
        return ["the base model itself; nothing was trained"]
    recipes = {str(run["recipe"]) for run in nodes.get("run", ()) if run.get("recipe")}
    lines = [METHODS.get(recipe, recipe) for recipe in sorted(recipes)] or ["an adapter that was registered without its history"]
    for iteration in sorted(nodes.get("iteration", ()), key=lambda content: content.get("index", 0)):
        kept = f"{iteration.get('kept')} of {iteration.get('prompts')} pairs kept"
        lines.append(f"iteration {iteration.get('index')}: {kept}, alpha {iteration.get('alpha')}")
    for merge in nodes.get("merge", ()):
        lines.append(f"merged from {len(merge.get('sources', ()))} versions ({merge.get('how')}, rank {merge.get('rank') or 'exact'})")
    for run in nodes.get("run", ()):
        libraries = ", ".join(f"{name} {number}" for name, number in sorted(run.get("libraries", {}).items()))
        lines.append(f"run `{run.get('id')}`; seeds {run.get('seeds')}; made with {libraries}")
    lines.append("the adapter's update is added to the base's linear layers; fused, as in `model/`, it costs nothing at inference")
    return lines


def _data(nodes: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    pairs = nodes.get("pair", ())
    if not pairs:
        return ["nothing is recorded"]
    diverged = sum(bool(pair.get("diverged")) for pair in pairs)
    words = Counter(str(prompt.get("text", "")) for prompt in nodes.get("prompt", ()))
    lines = [
        f"{len(pairs)} pairs of pictures, all painted by the model itself, of {len(words)} prompts; {diverged} diverged in training",
        "no photographs and no pictures by people were used in this training; what the base model was trained on, its own card says",
    ]
    return [*lines, *(f"for instance: {text}" for text in sorted(words)[:3])]


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    told = {name: f" ({words})" for name, words in METRICS.items()}
    return [f"`{name}` = {value:.4g}{told.get(name, '')}" for name, value in metrics.items()] or ["none are recorded"]


def _licence(licence: Licence, base: str) -> list[str]:
    own = licence.name or licence.id
    told = f"{own}, {licence.link}" if licence.link else own
    held = f"the licence of the base model `{base}` holds for everything that is made from it"
    return [held] if licence.id == "other" and not licence.name else [told, held]
