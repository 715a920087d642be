"""The folder for ComfyUI. `make interop` shows the same workflows and adapters to ComfyUI itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.diffusion.families import family_of
from sfumato.export.card import Licence
from sfumato.export.comfyui import NODES, Graph, page_format, workflow
from sfumato.export.folder import export_version
from sfumato.lora.adapter import Adapter, differences
from sfumato.lora.binding import denoiser_of
from sfumato.lora.files import load
from sfumato.lora.modules import adaptable
from sfumato.registry.bases import base_modules
from sfumato.registry.records import Base, WeightedAdapter
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.adapters import encode_adapter
from sfumato.runtime.models.versions import model_version
from tests.unit.diffusion import tiny
from tests.unit.export.conftest import Sample

PIPELINES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "flux": (lambda: tiny.flux(guidance_embeds=True), "black-forest-labs/FLUX.1-dev", "flux1-dev.safetensors"),
    "sd": (tiny.sd, "someone/My Model!", "My-Model-.safetensors"),
    "sdxl": (tiny.sdxl, "stabilityai/stable-diffusion-xl-base-1.0", "sd_xl_base_1.0.safetensors"),
    "sd3": (tiny.sd3, "stabilityai/stable-diffusion-3-medium-diffusers", "sd3_medium_incl_clips_t5xxlfp16.safetensors"),
}


def graph_of(kind: str) -> Graph:
    make, base, _ = PIPELINES[kind]
    pipeline = make()
    family = family_of(pipeline)
    assert family.comfyui is not None
    return workflow("mine.safetensors", base, family.comfyui, family.limits, pipeline)


def one(graph: Graph, kind: str) -> dict[str, Any]:
    (node,) = [node for node in graph.values() if node["class_type"] == kind]
    return node["inputs"]


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_adapter_is_between_the_loader_and_the_sampler(kind: str) -> None:
    graph = graph_of(kind)
    way = [one(graph, "KSampler")["model"][0]]
    while "model" in graph[way[-1]]["inputs"]:
        way.append(graph[way[-1]]["inputs"]["model"][0])
    kinds = [graph[id]["class_type"] for id in way]
    assert "LoraLoaderModelOnly" in kinds and kinds[-1] in ("CheckpointLoaderSimple", "UNETLoader")
    assert one(graph, "LoraLoaderModelOnly") | {"model": None} == {"model": None, "lora_name": "mine.safetensors", "strength_model": 1.0}
    assert PIPELINES[kind][2] in graph[way[-1]]["inputs"].values()


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_sampler_has_the_models_own_defaults(kind: str) -> None:
    pipeline = PIPELINES[kind][0]()
    limits, graph = family_of(pipeline).limits, graph_of(kind)
    sampler = one(graph, "KSampler")
    assert sampler["steps"] == limits.default_steps
    guidance = one(graph, "FluxGuidance")["guidance"] if kind == "flux" else sampler["cfg"]
    assert guidance == limits.default_guidance
    assert (sampler["cfg"] == 1.0) == (kind == "flux")
    latent = graph[sampler["latent_image"][0]]["inputs"]
    assert (latent["width"], latent["height"]) == (limits.default_size, limits.default_size)
    assert (sampler["sampler_name"], sampler["scheduler"]) == {
        "flux": ("euler", "simple"),
        "sd3": ("euler", "simple"),
        "sd": ("ddim", "ddim_uniform"),
        "sdxl": ("euler", "normal"),
    }[kind]


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_page_has_the_same_graph(kind: str) -> None:
    graph = graph_of(kind)
    page = page_format(graph)
    links = {link[0]: link for link in page["links"]}
    for node in page["nodes"]:
        connected, widgets, outputs = NODES[node["type"]]
        inputs = graph[str(node["id"])]["inputs"]
        for slot in node["inputs"]:
            _, source, output, target, _, kind_of = links[slot["link"]]
            assert [str(source), output] == inputs[slot["name"]] and target == node["id"]
            assert page["nodes"][source - 1]["outputs"][output]["type"] == kind_of == slot["type"]
            assert slot["link"] in page["nodes"][source - 1]["outputs"][output]["links"]
        written = dict(zip(widgets, node["widgets_values"], strict=True))
        assert written | {"control_after_generate": None} == {n: v for n, v in inputs.items() if n not in connected} | {
            "control_after_generate": None
        }
        assert len(node["outputs"]) == len(outputs)


def test_an_export_of_a_model_of_the_hub_has_the_folder(tmp_path: Path) -> None:
    pipeline: Any = tiny.sd()
    pipeline.save_pretrained(tmp_path / "base")
    generator = torch.Generator().manual_seed(1)
    factors = {}
    for name, module in adaptable(denoiser_of(pipeline)):
        out, width = module.get_parameter("weight").shape[:2]
        factors[name] = (torch.randn(2, width, generator=generator), torch.randn(out, 2, generator=generator))
    convolutions = frozenset(name for name, module in adaptable(denoiser_of(pipeline)) if isinstance(module, torch.nn.Conv2d))
    adapter = Adapter(factors, pointwise=convolutions)
    data = encode_adapter(adapter)
    digest = hashlib.sha256(data).hexdigest()
    base = Base(model_version(tmp_path / "base"), "someone/tiny", base_modules(tmp_path / "base"))
    with closing(Registry(Database(f"sqlite:///{tmp_path}/registry.sqlite"), ArtifactStore(str(tmp_path / "artifacts")))) as registry:
        version = registry.register(base, [WeightedAdapter(digest, 1.0)], files={digest: data})
        made = export_version(registry, version.id, tmp_path / "out", tmp_path / "base", licence=Licence("apache-2.0"))
    assert not made.left_out
    (file,) = (tmp_path / "out" / "comfyui" / "loras").iterdir()
    assert max(differences(load(file), adapter).values()) < 1e-5
    graph = json.loads((tmp_path / "out" / "comfyui" / "workflow_api.json").read_text())
    assert one(graph, "LoraLoaderModelOnly")["lora_name"] == file.name
    assert one(graph, "CheckpointLoaderSimple")["ckpt_name"] == "tiny.safetensors"
    assert json.loads((tmp_path / "out" / "comfyui" / "workflow.json").read_text()) == page_format(graph)
    assert f"comfyui/loras/{file.name}" in (tmp_path / "out" / "README.md").read_text()


def test_the_built_in_model_has_none_and_the_reason_is_said(sample: Sample) -> None:
    assert "no text encoders of vista" in sample.made.left_out["comfyui/"]
    assert not (sample.folder / "comfyui").exists()
