"""A folder for ComfyUI: the adapter in the layout that it loads, and a workflow that loads it, in both of its JSON formats."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from sfumato.diffusion.families.comfyui import ComfyUINodes
from sfumato.diffusion.limits import ModelLimits

API, UI = "workflow_api.json", "workflow.json"
PROMPT = "a red house by day"

# ComfyUI's sampler and scheduler that step as a scheduler of diffusers does, or come nearest; euler and normal where none is named.
SAMPLERS: Mapping[str, tuple[str, str]] = {
    "DDIMScheduler": ("ddim", "ddim_uniform"),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "normal"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "normal"),
    "FlowMatchEulerDiscreteScheduler": ("euler", "simple"),
    "HeunDiscreteScheduler": ("heun", "normal"),
    "LMSDiscreteScheduler": ("lms", "normal"),
    "UniPCMultistepScheduler": ("uni_pc", "normal"),
}

# Of the nodes that are used: the types of what is connected, the names of what is written in the node in the order in which the page
# shows it, and the outputs.
NODES: Mapping[str, tuple[Mapping[str, str], tuple[str, ...], tuple[str, ...]]] = {
    "CheckpointLoaderSimple": ({}, ("ckpt_name",), ("MODEL", "CLIP", "VAE")),
    "UNETLoader": ({}, ("unet_name", "weight_dtype"), ("MODEL",)),
    "DualCLIPLoader": ({}, ("clip_name1", "clip_name2", "type"), ("CLIP",)),
    "VAELoader": ({}, ("vae_name",), ("VAE",)),
    "LoraLoaderModelOnly": ({"model": "MODEL"}, ("lora_name", "strength_model"), ("MODEL",)),
    "ModelSamplingFlux": ({"model": "MODEL"}, ("max_shift", "base_shift", "width", "height"), ("MODEL",)),
    "ModelSamplingSD3": ({"model": "MODEL"}, ("shift",), ("MODEL",)),
    "CLIPTextEncode": ({"clip": "CLIP"}, ("text",), ("CONDITIONING",)),
    "FluxGuidance": ({"conditioning": "CONDITIONING"}, ("guidance",), ("CONDITIONING",)),
    "EmptyLatentImage": ({}, ("width", "height", "batch_size"), ("LATENT",)),
    "EmptySD3LatentImage": ({}, ("width", "height", "batch_size"), ("LATENT",)),
    "KSampler": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        ("seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
        ("LATENT",),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, (), ("IMAGE",)),
    "SaveImage": ({"images": "IMAGE"}, ("filename_prefix",), ()),
}

Graph = dict[str, dict[str, Any]]
"""ComfyUI's API format: nodes by id, with inputs that are values or ``[id, output]`` of another node."""


def write_workflow(folder: Path, lora: str, base: str, nodes: ComfyUINodes, limits: ModelLimits, pipeline: DiffusionPipeline) -> None:
    """Write the workflow that paints with an adapter's file, in the API's format and in the page's.

    Args:
        folder: where; it exists.
        lora: the adapter's file, as ComfyUI lists it.
        base: the base model's name.
        nodes: of the base model's family.
        limits: the model's, with the defaults for size, steps and guidance.
        pipeline: the base model's; its scheduler decides sampler and shift.
    """
    graph = workflow(lora, base, nodes, limits, pipeline)
    for name, content in ((API, graph), (UI, page_format(graph))):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def workflow(lora: str, base: str, nodes: ComfyUINodes, limits: ModelLimits, pipeline: Any) -> Graph:
    """The workflow in the API's format: loaders, the adapter at full strength, texts, KSampler, decoder, file; see `write_workflow`."""
    file = nodes.files.get(base) or f"{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(base).name) or 'model'}.safetensors"
    graph: Graph = {}

    def add(kind: str, **inputs: Any) -> str:
        graph[str(len(graph) + 1)] = {"class_type": kind, "inputs": inputs}
        return str(len(graph))

    if nodes.text is None:
        loader = add("CheckpointLoaderSimple", ckpt_name=file)
        model, clip, vae = [loader, 0], [loader, 1], [loader, 2]
    else:
        model = [add("UNETLoader", unet_name=file, weight_dtype="default"), 0]
        clip = [add("DualCLIPLoader", clip_name1=nodes.text[0], clip_name2=nodes.text[1], type=nodes.text[2]), 0]
        vae = [add("VAELoader", vae_name=nodes.autoencoder), 0]
    model = [add("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0), 0]
    size = {"width": limits.default_size, "height": limits.default_size}
    if shift := _shift(pipeline.scheduler.config, size):
        model = [add(shift[0], model=model, **shift[1]), 0]
    positive, negative = ([add("CLIPTextEncode", clip=clip, text=text), 0] for text in (PROMPT, ""))
    cfg = limits.default_guidance
    if not limits.negative_prompts:  # guidance is an input of the denoiser, or distilled away
        positive, cfg = [add("FluxGuidance", conditioning=positive, guidance=limits.default_guidance), 0], 1.0
    latent = [add(nodes.latent, **size, batch_size=1), 0]
    sampler, scheduler = SAMPLERS.get(type(pipeline.scheduler).__name__, ("euler", "normal"))
    settings = {"seed": 0, "steps": limits.default_steps, "cfg": cfg, "sampler_name": sampler, "scheduler": scheduler, "denoise": 1.0}
    latent = [add("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **settings), 0]
    add("SaveImage", images=[add("VAEDecode", samples=latent, vae=vae), 0], filename_prefix="sfumato")
    return graph


def _shift(scheduler: Mapping[str, Any], size: Mapping[str, int]) -> tuple[str, dict[str, float]] | None:
    """The node that shifts the noise levels as the scheduler of a flow-matching model does; None for other models."""
    if scheduler.get("use_dynamic_shifting"):
        return "ModelSamplingFlux", {"max_shift": scheduler["max_shift"], "base_shift": scheduler["base_shift"], **size}
    return ("ModelSamplingSD3", {"shift": float(scheduler["shift"])}) if "shift" in scheduler else None


def page_format(graph: Graph) -> dict[str, Any]:
    """The same workflow as ComfyUI's page saves and opens it: nodes with places, and links between their slots."""
    links: list[list[Any]] = []
    nodes: list[dict[str, Any]] = []
    for id, node in graph.items():
        connected, widgets, outputs = NODES[node["class_type"]]
        slots = []
        for slot, (name, kind) in enumerate(connected.items()):
            source, output = node["inputs"][name]
            links.append([len(links) + 1, int(source), output, int(id), slot, kind])
            slots.append({"name": name, "type": kind, "link": len(links)})
        values = {"control_after_generate": "fixed", **node["inputs"]}
        nodes.append(
            {
                "id": int(id),
                "type": node["class_type"],
                "pos": [320 * ((int(id) - 1) % 4), 280 * ((int(id) - 1) // 4)],
                "size": [300, 220],
                "flags": {},
                "order": int(id) - 1,
                "mode": 0,
                "inputs": slots,
                "outputs": [{"name": kind, "type": kind, "slot_index": index, "links": []} for index, kind in enumerate(outputs)],
                "properties": {"Node name for S&R": node["class_type"]},
                "widgets_values": [values[name] for name in widgets],
            }
        )
    for number, source, output, *_ in links:
        nodes[source - 1]["outputs"][output]["links"].append(number)
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
