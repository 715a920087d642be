"""Pipelines of the real diffusers classes, tiny and randomly initialised, for tests."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast, T5Config, T5EncoderModel

WORDS = (
    "a",
    "the",
    "red",
    "green",
    "full",
    "moon",
    "sun",
    "lake",
    "boat",
    "house",
    "tree",
    "over",
    "at",
    "night",
    "day",
    "radiant",
    "glowing",
    "serene",
)
TEXT, WIDTH, SIZE = 12, 32, 32


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of a few words."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[BOS]", "[EOS]", *WORDS])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.post_processor = processors.TemplateProcessing(single="$A [EOS]", pair=None, special_tokens=[("[EOS]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=TEXT, padding_side="right", **names)


def clip(cls: type[CLIPTextModel] | type[CLIPTextModelWithProjection] = CLIPTextModel, layers: int = 1) -> Any:
    """A CLIP text encoder of `tokenizer`'s words."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer()), hidden_size=WIDTH, intermediate_size=WIDTH, projection_dim=WIDTH, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=TEXT, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return cls(config)


def t5(width: int = WIDTH) -> T5EncoderModel:
    """A T5 encoder of `tokenizer`'s words."""
    config = T5Config(
        vocab_size=len(tokenizer()), d_model=width, d_kv=16, num_heads=2, d_ff=width, num_layers=1, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=3, use_cache=False,
    )  # fmt: skip
    return T5EncoderModel(config)


def autoencoder(channels: int = 4, **more: Any) -> AutoencoderKL:
    """4x4 pixels a latent cell of so many channels."""
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8),
    }
    return AutoencoderKL(
        **blocks, layers_per_block=1, latent_channels=channels, norm_num_groups=4, mid_block_add_attention=False, sample_size=SIZE, **more
    )


def finished(pipeline: Any) -> Any:
    """The pipeline without progress bar and gradients."""
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


def loud(denoiser: Any) -> Any:
    """With larger matrices than at initialisation, so that words show in the picture."""
    for parameter in denoiser.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return denoiser


def flux(*, guidance_embeds: bool = False, seed: int = 0) -> FluxPipeline:
    """A FluxPipeline of 32x32 pictures: 8x8x4 latents, 16 tokens of 16 channels; every weight random, no zero layers."""
    torch.manual_seed(seed)
    words: Any = tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    loud(transformer)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=autoencoder(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.7),
        text_encoder=clip(), tokenizer=words, text_encoder_2=t5(), tokenizer_2=tokenizer(), transformer=transformer,
    )  # fmt: skip
    return finished(pipeline)


def unet(**more: Any) -> UNet2DConditionModel:
    """A UNet of two levels on 8x8x4 latents."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, **more,
    )  # fmt: skip
    return loud(model)


NOISE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def sd(prediction_type: str = "epsilon", scheduler: Any = None, **more: Any) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline of 32x32 pictures: 1.5 predicts noise, 2.1 (with linear projections) velocity."""
    network = unet(cross_attention_dim=WIDTH, use_linear_projection=prediction_type == "v_prediction", **more)
    kind: Any = prediction_type
    ddim: Any = DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **NOISE)
    words: Any = tokenizer()
    nothing: Any = None
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(scaling_factor=0.2), text_encoder=clip(), tokenizer=words, unet=network, scheduler=scheduler or ddim,
        safety_checker=nothing, feature_extractor=nothing, requires_safety_checker=False,
    )  # fmt: skip
    return finished(pipeline)


def sdxl() -> StableDiffusionXLPipeline:
    """A StableDiffusionXLPipeline of 32x32 pictures."""
    network = unet(
        cross_attention_dim=2 * WIDTH, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )  # fmt: skip
    words: Any = tokenizer()
    euler: Any = EulerDiscreteScheduler(steps_offset=1, **NOISE)
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13), text_encoder=clip(layers=2), tokenizer=words, unet=network, tokenizer_2=words,
        text_encoder_2=clip(CLIPTextModelWithProjection, 2), scheduler=euler,
        add_watermarker=False,
    )  # fmt: skip
    return finished(pipeline)


def sd3(*, with_t5: bool = True, channels: int = 4) -> StableDiffusion3Pipeline:
    """A StableDiffusion3Pipeline of 32x32 pictures: 8x8 latents of so many channels (diffusers masks pictures of 16 only), 16 patches."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=channels, out_channels=channels, num_layers=2, attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, caption_projection_dim=WIDTH, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    words: Any = tokenizer()
    nothing: Any = None
    pipeline = StableDiffusion3Pipeline(
        transformer=loud(transformer), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(channels, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(CLIPTextModelWithProjection, 2), tokenizer=words, text_encoder_2=clip(CLIPTextModelWithProjection, 2),
        tokenizer_2=words, text_encoder_3=t5(2 * WIDTH) if with_t5 else nothing, tokenizer_3=words if with_t5 else nothing,
    )  # fmt: skip
    return finished(pipeline)
