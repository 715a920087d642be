"""The Vista generator: a small ``diffusers.FluxPipeline``, every part of the real class.

64x64 pictures; an autoencoder that shrinks by 4 to 8 channels; 64 packed tokens of 32 channels; a T5 and a CLIP text encoder
over a word-level tokenizer that drops stop words. Guidance is distilled into the transformer, as in FLUX.1-dev, so one step
is one forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

SIZE = 64
TEXT_LENGTH = 32
LATENT_CHANNELS = 8
STOP_WORDS = ("a", "an", "the", "with", "and", "of", "by", "in", "at", "under", "over")
WIDTH, HEAD, DOUBLE, SINGLE, TEXT_WIDTH = 128, 32, 2, 4, 128


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: lower case, letters only, without stop words, closed by an end token."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[BOS]": 2, "[EOS]": 3}
    for word in words:
        if word not in STOP_WORDS:
            vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    stop = Regex(r"\b(" + "|".join(STOP_WORDS) + r")\b")
    steps = [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^a-z ]"), " "), normalizers.Replace(stop, " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [EOS]", pair=None, special_tokens=[("[EOS]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=TEXT_LENGTH, padding_side="right", **names)


def build_autoencoder() -> AutoencoderKL:
    """The untrained autoencoder: three levels without attention, 64x64x3 to 16x16x8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        block_out_channels=(48, 48, 48),  # pyright: ignore[reportArgumentType]
        layers_per_block=0,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        sample_size=SIZE,
    )


def build_text_encoders(tokenizer: PreTrainedTokenizerFast) -> tuple[CLIPTextModel, T5EncoderModel]:
    """The untrained text encoders: CLIP's pooled vector modulates, T5's sequence is attended to."""
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        attention_dropout=0.0,
    )
    t5 = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=32,
        num_heads=4,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=3,
        use_cache=False,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def build_transformer() -> FluxTransformer2DModel:
    """The untrained transformer, its modulations and output starting at zero."""
    frame = HEAD // 8 * 2
    side = (HEAD - frame) // 2
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=LATENT_CHANNELS * 4,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=HEAD,
        num_attention_heads=WIDTH // HEAD,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(frame, side, side),
    )
    for name, parameter in transformer.named_parameters():
        if ("norm" in name and "linear" in name) or name.startswith("proj_out"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
    return transformer


def assemble(
    autoencoder: AutoencoderKL,
    clip: CLIPTextModel,
    t5: T5EncoderModel,
    transformer: FluxTransformer2DModel,
    tokenizer: PreTrainedTokenizerFast,
) -> FluxPipeline:
    """The parts as one pipeline, with a plain Euler scheduler (no resolution-dependent shift)."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False)
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=autoencoder,
        text_encoder=clip,
        tokenizer=tokenizer,  # pyright: ignore[reportArgumentType]
        text_encoder_2=t5,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pack(latents: torch.Tensor) -> torch.Tensor:
    """``[batch, channels, height, width]`` to FLUX's tokens ``[batch, height/2 * width/2, channels * 4]``."""
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, (height // 2) * (width // 2), channels * 4)


def image_ids(height: int, width: int) -> torch.Tensor:
    """Positions of packed tokens for FLUX's rotary embedding, ``[height * width, 3]``."""
    ids = torch.zeros(height, width, 3)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.reshape(height * width, 3)
