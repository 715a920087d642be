"""Adapters of tiny random models, exported for ComfyUI, with the weights and the predictions that they should give.

Run by `deploy.interop` in the product's environment: ``python -m tests.interop.cases FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file

from sfumato.diffusion.families import family_of
from sfumato.export.comfyui import write_workflow
from sfumato.lora.adapter import Adapter
from sfumato.lora.binding import denoiser_of
from sfumato.lora.files import Layout, export, layouts_of
from sfumato.lora.fuse import Fuser
from sfumato.lora.modules import adaptable
from tests.unit.diffusion import tiny


def _unet(pipeline: Any) -> Any:
    """The pipeline with a U-Net of 32 groups a normalisation, which ComfyUI's U-Nets have without a choice."""
    config = dict(pipeline.unet.config) | {"block_out_channels": [32, 64], "norm_num_groups": 32}
    torch.manual_seed(0)
    pipeline.unet = tiny.loud(UNet2DConditionModel.from_config(config))
    return pipeline


def _sd3() -> Any:
    """The pipeline with a transformer of as many heads of 64 channels as blocks, which ComfyUI takes for granted."""
    pipeline: Any = tiny.sd3()
    config = dict(pipeline.transformer.config) | {"attention_head_dim": 64, "num_attention_heads": 2, "caption_projection_dim": 128}
    torch.manual_seed(0)
    pipeline.transformer = tiny.loud(SD3Transformer2DModel.from_config(config))
    return pipeline


KINDS = {
    "flux": (lambda: tiny.flux(guidance_embeds=True), "black-forest-labs/FLUX.1-dev"),
    "sd": (lambda: _unet(tiny.sd()), "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "sdxl": (lambda: _unet(tiny.sdxl()), "stabilityai/stable-diffusion-xl-base-1.0"),
    "sd3": (_sd3, "stabilityai/stable-diffusion-3-medium-diffusers"),
}


def adapter_of(denoiser: torch.nn.Module) -> Adapter:
    """Random factors of ranks 1 to 3 on every linear and 1x1 convolution."""
    generator = torch.Generator().manual_seed(6)
    factors = {}
    for name, module in adaptable(denoiser):
        rank, (out, width) = 1 + len(factors) % 3, module.get_parameter("weight").shape[:2]
        factors[name] = (torch.randn(rank, width, generator=generator) * 0.3, torch.randn(out, rank, generator=generator) * 0.3)
    return Adapter(factors)


def inputs_of(kind: str, denoiser: Any) -> dict[str, torch.Tensor]:
    """Random inputs of a denoiser's forward, by diffusers' names; latents are ``[1, channels, 8, 8]``."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "flux":
        config = denoiser.config
        return {"latents": random(1, config.in_channels // 4, 8, 8), "text": random(1, 5, config.joint_attention_dim),
                "pooled": random(1, config.pooled_projection_dim), "time": torch.tensor([0.7]),
                "guidance": torch.tensor([3.5])}  # fmt: skip
    if kind == "sd3":
        config = denoiser.config
        return {"latents": random(1, config.in_channels, 8, 8), "text": random(1, 5, config.joint_attention_dim),
                "pooled": random(1, config.pooled_projection_dim), "time": torch.tensor([700.0])}  # fmt: skip
    inputs = {"latents": random(1, denoiser.config.in_channels, 8, 8), "text": random(1, 5, denoiser.config.cross_attention_dim),
              "time": torch.tensor([700.0])}  # fmt: skip
    if kind == "sdxl":
        inputs["pooled"] = random(1, tiny.WIDTH)
        inputs["sizes"] = torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]])
    return inputs


@torch.no_grad()
def predicted(kind: str, pipeline: Any, x: dict[str, torch.Tensor]) -> torch.Tensor:
    """The denoiser's prediction ``[1, channels, 8, 8]`` in diffusers."""
    denoiser = denoiser_of(pipeline)
    if kind == "flux":
        packed = pipeline._pack_latents(x["latents"], 1, x["latents"].shape[1], 8, 8)
        out = denoiser(
            hidden_states=packed, encoder_hidden_states=x["text"], pooled_projections=x["pooled"], timestep=x["time"],
            guidance=x["guidance"],
            img_ids=pipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32), txt_ids=torch.zeros(5, 3), return_dict=False,
        )[0]  # fmt: skip
        side = 8 * pipeline.vae_scale_factor
        return pipeline._unpack_latents(out, side, side, pipeline.vae_scale_factor)
    if kind == "sd3":
        return denoiser(hidden_states=x["latents"], encoder_hidden_states=x["text"], pooled_projections=x["pooled"], timestep=x["time"],
                        return_dict=False)[0]  # fmt: skip
    added = {"text_embeds": x["pooled"], "time_ids": x["sizes"]} if kind == "sdxl" else None
    return denoiser(x["latents"], x["time"], encoder_hidden_states=x["text"], added_cond_kwargs=added, return_dict=False)[0]


def write(folder: Path) -> None:
    """One folder for each kind of model."""
    for kind, (make, base) in KINDS.items():
        pipeline: Any = make()
        denoiser: Any = denoiser_of(pipeline)
        place = folder / kind
        place.mkdir(parents=True)
        adapter = adapter_of(denoiser)
        save_file(denoiser.state_dict(), place / "base.safetensors")
        (place / "config.json").write_text(json.dumps(dict(denoiser.config), default=list))
        for layout in layouts_of(pipeline):
            if layout is not Layout.PEFT:
                export(adapter, place / f"{layout.value}.safetensors", layout, pipeline)
        inputs = inputs_of(kind, denoiser)
        plain = predicted(kind, pipeline, inputs)
        Fuser(denoiser).fuse(adapter)
        save_file(denoiser.state_dict(), place / "fused.safetensors")
        wanted = predicted(kind, pipeline, inputs)
        save_file({**inputs, "plain": plain.contiguous(), "wanted": wanted.contiguous()}, place / "inputs.safetensors")
        nodes = family_of(pipeline).comfyui
        assert nodes is not None
        write_workflow(place, "mine.safetensors", base, nodes, family_of(pipeline).limits, pipeline)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
