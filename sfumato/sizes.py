"""How large a model is, as data: what estimates of memory and time are computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Blocks:
    """``count`` equal blocks of a denoiser: channels of a token, pixels along its side, and tokens of text beside it."""

    count: int
    width: int
    cell: int
    text: int = 0

    def tokens(self, width: int, height: int) -> int:
        """Tokens of one row for a picture of this size in pixels."""
        return math.ceil(width / self.cell) * math.ceil(height / self.cell) + self.text


@dataclass(frozen=True, slots=True)
class Cache:
    """The key-value cache of a language model."""

    layers: int
    heads: int
    head_width: int

    @property
    def per_token(self) -> int:
        """Numbers kept for one token: a key and a value in every layer."""
        return 2 * self.layers * self.heads * self.head_width


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters by part, and what its activations depend on.

    ``blocks`` and ``decoder_channels`` (the most the picture decoder has at full size) are a pipeline's, ``cache`` a language
    model's. ``classifier_free``: guidance above 1 takes an unconditional row beside every picture's. ``file_bytes`` are those of a
    parameter in the published files. ``gated``: the hub asks to accept a licence first.
    """

    parameters: Mapping[str, int]
    blocks: tuple[Blocks, ...] = ()
    decoder_channels: int = 0
    cache: Cache | None = None
    classifier_free: bool = False
    file_bytes: int = 2
    gated: bool = False

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())


# Parts that the published pipelines of several families share, counted from their config.json on torch's meta device.
T5_XXL = 4_762_310_656  # google/t5-v1_1-xxl, the encoder alone
CLIP_L_TEXT = 123_060_480  # openai/clip-vit-large-patch14, the text model alone
CLIP_G_TEXT = 694_659_840  # laion/CLIP-ViT-bigG-14-laion2B-39B-b160k, the text model alone
VAE_4 = 83_653_863  # AutoencoderKL, four latent channels (stabilityai/sdxl-vae and Stable Diffusion's own)
VAE_16 = 83_819_683  # AutoencoderKL, sixteen latent channels (FLUX.1 and Stable Diffusion 3)
