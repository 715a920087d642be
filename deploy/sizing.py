"""Parameters of the models in docs/operators.md's table, counted on the architectures: ``python -m deploy.sizing``.

Published configurations on the meta device, without memory for weights; for Vista the shipped files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import sfumato as sfumato  # before diffusers and transformers
from sfumato.vista import weights

Parts = dict[str, Callable[[], torch.nn.Module]]

def counted(model: str) -> dict[str, int]:
    """Parameters of a model's parts: ``denoiser``, ``text`` and ``autoencoder``."""
    if model == "vista":
        return _shipped()
    with torch.device("meta"):
        return {name: sum(weight.numel() for part in parts for weight in part().parameters()) for name, parts in _PARTS[model].items()}

def gigabytes(model: str, bytes_each: int) -> float:
    """GB of all its weights, at ``bytes_each`` bytes per parameter."""
    return sum(counted(model).values()) * bytes_each / 1e9

def _shipped() -> dict[str, int]:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(weights.locate("generator"))
    parts = {"denoiser": [pipeline.transformer], "text": [pipeline.text_encoder, pipeline.text_encoder_2], "autoencoder": [pipeline.vae]}
    return {name: sum(weight.numel() for part in found for weight in part.parameters()) for name, found in parts.items()}

def _flux() -> torch.nn.Module:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True)

def _t5() -> torch.nn.Module:
    from transformers import T5Config, T5EncoderModel

    heads: dict[str, Any] = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
    return T5EncoderModel(T5Config(**heads, feed_forward_proj="gated-gelu"))

def _clip_l() -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))

def _clip_g() -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    shape: dict[str, Any] = {"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280}
    shape |= {"num_hidden_layers": 32, "num_attention_heads": 20}
    return CLIPTextModelWithProjection(CLIPTextConfig(**shape))

def _unet_15() -> torch.nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)

def _unet_xl() -> torch.nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    down, up = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    shape: dict[str, Any] = {"block_out_channels": (320, 640, 1280), "down_block_types": down, "up_block_types": up}
    shape |= {"transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048}
    shape |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}
    return UNet2DConditionModel(**shape, use_linear_projection=True)


def _autoencoder(channels: int) -> torch.nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    shape: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    shape |= {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": channels}
    quantized = channels == 4  # FLUX's has no convolutions beside its latents
    return AutoencoderKL(**shape, use_quant_conv=quantized, use_post_quant_conv=quantized)

_PARTS: dict[str, dict[str, list[Callable[[], torch.nn.Module]]]] = {
    "sd15": {"denoiser": [_unet_15], "text": [_clip_l], "autoencoder": [lambda: _autoencoder(4)]},
    "sdxl": {"denoiser": [_unet_xl], "text": [_clip_l, _clip_g], "autoencoder": [lambda: _autoencoder(4)]},
    "flux1-dev": {"denoiser": [_flux], "text": [_t5, _clip_l], "autoencoder": [lambda: _autoencoder(16)]},
}
MODELS = ("vista", *_PARTS)

if __name__ == "__main__":
    for name in MODELS:
        parts = counted(name)
        print(name, {part: f"{count / 1e6:.1f} M" for part, count in parts.items()}, f"{gigabytes(name, 2):.2f} GB at 2 bytes")
