"""Denoisers of every family without weights, and adapters on all their linears."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from sfumato.diffusion.families.catalog import described_of
from sfumato.lora.adapter import Adapter
from sfumato.lora.binding import denoiser_of, skeleton

_FLUX = {"patch_size": 1, "num_layers": 1, "num_single_layers": 2}
_UNET = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "norm_num_groups": 4, "layers_per_block": 2}

# Pipeline class, denoiser's class and its configuration. Flux of FLUX.1's own width is what diffusers converts kohya's layout for.
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "flux": (
        "FluxPipeline", "FluxTransformer2DModel",
        _FLUX | {"in_channels": 16, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
                 "pooled_projection_dim": 32, "axes_dims_rope": [4, 6, 6]},
    ),
    "flux1": (
        "FluxPipeline", "FluxTransformer2DModel",
        _FLUX | {"in_channels": 64, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
                 "pooled_projection_dim": 768, "guidance_embeds": True, "num_single_layers": 1},
    ),
    "sd": (
        "StableDiffusionPipeline", "UNet2DConditionModel",
        _UNET | {"block_out_channels": [8, 16], "cross_attention_dim": 12, "attention_head_dim": 4,
                 "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]},
    ),
    "sdxl": (
        "StableDiffusionXLPipeline", "UNet2DConditionModel",
        _UNET | {"block_out_channels": [8, 16, 16], "cross_attention_dim": 12, "attention_head_dim": [2, 4, 4],
                 "use_linear_projection": True, "transformer_layers_per_block": [1, 1, 2], "addition_embed_type": "text_time",
                 "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32,
                 "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                 "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]},
    ),
    "sd3": (
        "StableDiffusion3Pipeline", "SD3Transformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
         "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 12, "out_channels": 4,
         "pos_embed_max_size": 8},
    ),
}  # fmt: skip


def write_model(kind: str, folder: Path) -> Path:
    """The configuration files of a saved pipeline, and no weights."""
    pipeline, denoiser, config = CONFIGS[kind]
    part = "unet" if "UNet" in denoiser else "transformer"
    (folder / part).mkdir(parents=True)
    (folder / part / "config.json").write_text(json.dumps({"_class_name": denoiser} | config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, part: ["diffusers", denoiser]}))
    return folder


def empty(kind: str, folder: Path) -> DiffusionPipeline:
    """The pipeline without weights."""
    return skeleton(write_model(kind, folder / kind))


def linears(pipeline: DiffusionPipeline) -> dict[str, nn.Linear]:
    """Every linear of the denoiser that a LoRA may sit on."""
    targets = described_of(type(pipeline)).lora_targets
    modules = {n: m for n, m in denoiser_of(pipeline).named_modules() if isinstance(m, nn.Linear) and re.fullmatch(targets, n)}
    assert modules
    return modules


def random_adapter(pipeline: DiffusionPipeline, *, one_rank: int = 0, seed: int = 0) -> Adapter:
    """Random factors on all of them, ranks 1 to 4 in turn (or all ``one_rank``)."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for index, (name, module) in enumerate(sorted(linears(pipeline).items())):
        rank = one_rank or 1 + index % 4
        a = torch.randn(rank, module.in_features, generator=generator)
        factors[name] = (a, torch.randn(module.out_features, rank, generator=generator) * 0.1)
    return Adapter(factors, {"run": "test", "base": "tiny", "alpha": "0.5"})
