"""Exports a registered version into one folder; each part is loaded back and compared.

    README.md                 the model card
    model/                    a diffusers pipeline with the adapter fused in
    lora/diffusers.safetensors, lora/kohya.safetensors, lora/peft/     the adapter alone, in each layout its model has
    comfyui/loras/NAME.safetensors, comfyui/workflow.json, comfyui/workflow_api.json      the adapter and a workflow for ComfyUI
    service.py, bentofile.yaml                                         for `bentoml build` in the folder
    lineage.json              its lineage, as the registry has it
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from sfumato.diffusion.families import family_of
from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.loading import load_pipeline
from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights
from sfumato.export.bento import write_bento
from sfumato.export.card import Licence, MethodCard, model_card, recipes_of
from sfumato.export.comfyui import write_workflow
from sfumato.lora.adapter import Adapter, combine
from sfumato.lora.binding import denoiser_of
from sfumato.lora.files import Layout, export, layouts_of
from sfumato.lora.fuse import Fuser
from sfumato.registry.models import Models
from sfumato.registry.records import Lineage, Version
from sfumato.runtime.models.adapters import decode_adapter
from sfumato.runtime.models.builtin import BUILT_IN
from sfumato.runtime.models.references import VISTA
from sfumato.runtime.models.versions import model_version

EXAMPLE = """from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("model")
asked = dict(height={side}, width={side}, num_inference_steps={steps}, guidance_scale={guidance}{more})
pipeline("{prompt}", **asked).images[0].save("picture.png")"""
LORA_EXAMPLE = """
# or the base model, with the adapter at any strength
{base}
pipeline.load_lora_weights("lora", weight_name="diffusers.safetensors", adapter_name="{name}")
pipeline.set_adapters(["{name}"], [0.8])
pipeline("a red house by day", **asked).images[0].save("weaker.png")"""

OF_VISTA = """import torch
from sfumato.vista import weights  # the base comes with the package
pipeline = DiffusionPipeline.from_pretrained(weights.locate("generator"), torch_dtype=torch.float32)"""


@dataclass(frozen=True, slots=True)
class Exported:
    """The written files with their descriptions, for each layout the largest relative difference of an update after loading it, and
    what was left out and why."""

    version: str
    files: Mapping[str, str]
    differences: Mapping[str, float]
    left_out: Mapping[str, str]


def export_version(
    registry: Models,
    reference: str,
    to: Path,
    base: Path,
    *,
    licence: Licence,
    methods: Mapping[str, MethodCard] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Exported:
    """Write a version's files for other programs.

    Args:
        registry: holds the version.
        reference: the version, by alias, id, or a prefix of an id.
        to: a folder that does not exist, or is empty.
        base: the folder of its base model.
        licence: for the card.
        methods: the cards of the methods that trained it, by the recipe's name.
        dtype: precision of the fused model.

    Raises:
        NotFound: there is no such version.
        InvalidInput: ``to`` is not empty, or cannot be written.
        MissingWeights: ``base`` is not the version's base model.
        BrokenWeights: a written file loads back with other values.
    """
    _check_folder(to)
    version = registry.get(reference)
    found = model_version(base)
    if found != version.base.id:
        what = f"{base} has the version {found[:12]}, and {version.id[:12]} is of {version.base.name} {version.base.id[:12]}."
        raise MissingWeights(what, hint="Name the folder of its base model: --base FOLDER")
    adapters = [decode_adapter(registry.adapter(part.adapter)) for part in version.parts]
    adapter = combine(adapters, [part.weight for part in version.parts]) if adapters else None
    pipeline = load_pipeline(base, dtype=torch.float32)
    to.mkdir(parents=True, exist_ok=True)
    files, differences, left_out = {}, {}, {}
    if adapter is not None:
        adapter = Adapter(adapter.factors, {"base": version.base.name, "version": version.id})
        differences = _write_layouts(adapter, to / "lora", pipeline)
        files |= {f"lora/{_name(layout)}": WORDS[layout] for layout in differences}
        if version.base.name in BUILT_IN:
            left_out["comfyui/"] = f"ComfyUI's loaders know no text encoders of {version.base.name}"
        else:
            files |= _write_comfyui(adapter, version, to / "comfyui", pipeline)
    _write_model(pipeline, adapter, to / "model", dtype)
    files = {"model/": "the whole pipeline for diffusers, the adapter fused in" if adapter else "the whole pipeline for diffusers"} | files
    files |= {"service.py, bentofile.yaml": "`bentoml build` here makes a Bento of `model/`", "lineage.json": "all it came of"}
    lineage = registry.lineage(version.id)
    _write_lineage(version, lineage, to)
    _write_card_and_bento(version, lineage, to, pipeline, files, licence, methods)
    found = {layout.value: value for layout, value in differences.items()}
    return Exported(version.id, {"README.md": "this card's file"} | files, found, left_out)


WORDS = {
    Layout.DIFFUSERS: "the adapter for diffusers' `load_lora_weights` and ComfyUI",
    Layout.PEFT: "the adapter as PEFT's folder, for PEFT and vLLM-Omni",
    Layout.KOHYA: "the adapter in kohya's layout, for ComfyUI, A1111 and sd-scripts",
}


def _check_folder(to: Path) -> None:
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InvalidInput("to", f"{to} is there already, and is not empty.", hint="Name a new folder.")


def _name(layout: Layout) -> str:
    return "peft/" if layout is Layout.PEFT else f"{layout.value}.safetensors"


def _write_layouts(adapter: Adapter, folder: Path, pipeline: DiffusionPipeline) -> dict[Layout, float]:
    """Every layout that the model has; the largest difference of an update after each was loaded back."""
    return {layout: export(adapter, folder / _name(layout), layout, pipeline).difference for layout in layouts_of(pipeline)}


def _write_comfyui(adapter: Adapter, version: Version, folder: Path, pipeline: DiffusionPipeline) -> dict[str, str]:
    """Write the folder for ComfyUI where its loaders know the family; the files with their descriptions."""
    nodes = family_of(pipeline).comfyui
    if nodes is None:
        return {}
    layout = Layout.KOHYA if Layout.KOHYA in layouts_of(pipeline) else Layout.DIFFUSERS
    file = f"{_slug(version.base.name)}-{version.id[:12]}.safetensors"
    export(adapter, folder / "loras" / file, layout, pipeline)
    write_workflow(folder, file, version.base.name, nodes, family_of(pipeline).limits, pipeline)
    return {
        f"comfyui/loras/{file}": "the adapter for ComfyUI's folder models/loras",
        "comfyui/workflow.json": "a workflow with it for ComfyUI's page; workflow_api.json is the same for its API",
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def _write_model(pipeline: DiffusionPipeline, adapter: Adapter | None, folder: Path, dtype: torch.dtype) -> None:
    """Write the pipeline with ``W + B A`` in place of ``W``; its denoiser is read back and compared bit by bit."""
    denoiser = denoiser_of(pipeline)
    if adapter is not None:
        Fuser(denoiser).fuse(adapter)
    for name, parameter in denoiser.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InvalidInput("version", f"fused, {name} holds numbers that are not finite.", hint="It cannot be served either.")
    pipeline.to(dtype)
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    again = denoiser_of(load_pipeline(folder, dtype=dtype)).state_dict()
    for name, tensor in denoiser.state_dict().items():
        if not torch.equal(again[name], tensor):
            raise BrokenWeights(f"{folder}: {name} reads back as another one.", hint="Is the disk whole?")


def _write_lineage(version: Version, lineage: Lineage, to: Path) -> None:
    nodes = [{"id": node.id, "content": dict(node.content)} for node in lineage.nodes]
    told = {"version": version.id, "nodes": nodes, "edges": [asdict(edge) for edge in lineage.edges]}
    (to / "lineage.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _write_card_and_bento(
    version: Version,
    lineage: Lineage,
    to: Path,
    pipeline: DiffusionPipeline,
    files: Mapping[str, str],
    licence: Licence,
    methods: Mapping[str, MethodCard] | None,
) -> None:
    limits: ModelLimits = family_of(pipeline).limits
    told_length = "max_sequence_length" in inspect.signature(type(pipeline).__call__).parameters
    tokens = limits.prompt_tokens if told_length else None
    more = f", max_sequence_length={tokens}" if tokens else ""
    asked = {"side": limits.default_size, "steps": limits.default_steps, "guidance": limits.default_guidance, "more": more}
    example = EXAMPLE.format(prompt="a red house by day", **asked)
    if version.parts:
        base = OF_VISTA if version.base.name == VISTA else f'pipeline = DiffusionPipeline.from_pretrained("{version.base.name}")'
        recipes = recipes_of(lineage)
        example += LORA_EXAMPLE.format(base=base, name=recipes[0] if len(recipes) == 1 else "adapter")
    (to / "README.md").write_text(model_card(version, lineage, files, licence, example, methods), encoding="utf-8")
    labels = {"version": version.id[:12], "base": version.base.id[:12]}
    write_bento(to, f"sfumato-{_slug(version.base.name)}", limits, labels, tokens=tokens)
