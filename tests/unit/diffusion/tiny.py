"""Pipelines of the real diffusers classes, tiny and randomly initialised, for tests."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

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


def flux(*, guidance_embeds: bool = False, seed: int = 0) -> FluxPipeline:
    """A FluxPipeline of 32x32 pictures: 8x8x4 latents, 16 tokens of 16 channels; every weight random, no zero layers."""
    torch.manual_seed(seed)
    words: Any = tokenizer()
    clip = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=WIDTH, projection_dim=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=TEXT, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=len(words), d_model=WIDTH, d_kv=16, num_heads=2, d_ff=WIDTH, num_layers=1, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=3, use_cache=False,
    )  # fmt: skip
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    for parameter in transformer.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8),
    }
    vae = AutoencoderKL(
        **blocks, layers_per_block=1, latent_channels=4, norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False, sample_size=SIZE, shift_factor=0.1, scaling_factor=0.7,
    )  # fmt: skip
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=vae, text_encoder=CLIPTextModel(clip), tokenizer=words, text_encoder_2=T5EncoderModel(t5), tokenizer_2=tokenizer(),
        transformer=transformer,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.eval().requires_grad_(False)
    return pipeline
