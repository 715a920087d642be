"""How large a model is, without loading it: from the headers of its files, or, where it is not here, from what is published."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sfumato.errors import BrokenWeights

T5_AND_CLIP_TOKENS = 256 + 77
FLUX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Blocks:
    """``count`` blocks of a denoiser that are alike: channels of a token, pixels along its side, and tokens of text beside it."""

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


# The counts below are those of the published config.json of each part, counted by building it on torch's meta device.
_T5_XXL = 4_762_310_656  # google/t5-v1_1-xxl, the encoder alone
_CLIP_L_TEXT = 123_060_480  # openai/clip-vit-large-patch14, the text model alone
_CLIP_G_TEXT = 694_659_840  # laion/CLIP-ViT-bigG-14-laion2B-39B-b160k, the text model alone
_VAE_4 = 83_653_863  # AutoencoderKL, four latent channels (stabilityai/sdxl-vae and Stable Diffusion's own)
_VAE_16 = 83_819_683  # AutoencoderKL, sixteen latent channels (FLUX.1 and Stable Diffusion 3)
_FLUX = ModelSize(
    # "A 12 billion parameter rectified flow transformer" (the model card); transformer/config.json, 19 double and 38 single blocks.
    {"transformer": 11_901_408_320, "text_encoder": _CLIP_L_TEXT, "text_encoder_2": _T5_XXL, "vae": _VAE_16},
    (Blocks(57, 3072, 16, FLUX_TOKENS),),
    256,
    gated=True,
)
_CLIP_H = ModelSize({"model": 986_109_441}, file_bytes=4)  # ViT-H/14: laion/CLIP-ViT-H-14-laion2B-s32B-b79K, config.json


def _unet(parameters: int, text: Mapping[str, int], levels: Sequence[tuple[int, int]]) -> ModelSize:
    blocks = tuple(Blocks(count, width, 8 * 2**level) for level, (count, width) in enumerate(levels))
    return ModelSize({"unet": parameters, **text, "vae": _VAE_4}, blocks, 256, classifier_free=True)


KNOWN: Mapping[str, ModelSize] = {
    "black-forest-labs/FLUX.1-dev": _FLUX,
    # unet/config.json: (320, 640, 1280, 1280), two layers a level down and three up, a transformer block in all but the last.
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _unet(
        859_520_964, {"text_encoder": _CLIP_L_TEXT}, [(10, 320), (10, 640), (10, 1280), (8, 1280)]
    ),
    # unet/config.json: (320, 640, 1280), with no, two and ten transformer blocks a layer.
    "stabilityai/stable-diffusion-xl-base-1.0": _unet(
        2_567_463_684, {"text_encoder": _CLIP_L_TEXT, "text_encoder_2": _CLIP_G_TEXT}, [(5, 320), (15, 640), (67, 1280)]
    ),
    # transformer/config.json: 24 blocks of 24 heads of 64.
    "stabilityai/stable-diffusion-3-medium-diffusers": ModelSize(
        {
            "transformer": 2_028_328_000,
            "text_encoder": _CLIP_L_TEXT + 768 * 768,
            "text_encoder_2": _CLIP_G_TEXT,
            "text_encoder_3": _T5_XXL,
            "vae": _VAE_16,
        },
        (Blocks(24, 1536, 16, T5_AND_CLIP_TOKENS),),
        256,
        classifier_free=True,
        gated=True,
    ),
    # Each config.json; keys and values have 8, 4 and 2 heads of 128.
    "Qwen/Qwen2-VL-72B-Instruct": ModelSize({"model": 73_405_560_320}, cache=Cache(80, 8, 128)),
    "Qwen/Qwen2-VL-7B-Instruct": ModelSize({"model": 8_291_375_616}, cache=Cache(28, 4, 128)),
    "Qwen/Qwen2-VL-2B-Instruct": ModelSize({"model": 2_208_985_600}, cache=Cache(28, 2, 128)),
    "openai/clip-vit-large-patch14": ModelSize({"model": 427_616_513}, file_bytes=4),  # ViT-L/14 with a text model of width 768
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": _CLIP_H,
    "yuvalkirstain/PickScore_v1": _CLIP_H,  # fine-tuned from the one above (its model card)
}
"""Models by their name on the hub."""

CONVERTED: Mapping[str, int] = {
    # LAION's linear head on CLIP ViT-L/14: 768 -> 1024 -> 128 -> 64 -> 16 -> 1 (improved-aesthetic-predictor, sac+logos+ava1-l14).
    "aesthetic": 768 * 1024 + 1024 + 1024 * 128 + 128 + 128 * 64 + 64 + 64 * 16 + 16 + 16 + 1,
    # MPS: a CLIP ViT-H/14 and one cross attention of width 1024 on it (MPS, trainer/models/cross_modeling.py).
    "mps": 986_109_441 + 118_497_280,
    # HPS v2.1: a CLIP ViT-H/14.
    "hpsv2": 986_109_441,
}
"""Parameters of scorers that are published as pickles and must be converted, by metric."""


def measured(folder: Path) -> ModelSize:
    """The size of a saved model: a diffusers pipeline, a vision-language model, a scorer.

    Raises:
        BrokenWeights: a file that is needed is absent or damaged.
    """
    index = folder / "model_index.json"
    if index.is_file():
        parts = [name for name, kind in _json(index).items() if isinstance(kind, list) and kind[0] and (folder / name).is_dir()]
        counted = {name: _parameters(folder / name) for name in parts}
        channels = _json(folder / "vae" / "config.json")["block_out_channels"]
        blocks = _blocks(folder, 2 ** (len(channels) - 1))
        free = _json(index)["_class_name"] != "FluxPipeline"
        return ModelSize({name: count for name, count in counted.items() if count}, blocks, channels[1], classifier_free=free)
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return ModelSize({"model": _parameters(folder)}, cache=_cache(config))


def _parameters(folder: Path) -> int:
    """Numbers in the safetensors files that make up one model; variants in other precisions are not counted again."""
    lists = sorted(folder.glob("*.safetensors.index.json"))
    plain = [path for path in lists if path.name.count(".") == 3] or lists
    names = sorted({*_json(plain[0])["weight_map"].values()}) if plain else []
    files = [folder / name for name in names] or sorted(path for path in folder.glob("*.safetensors") if "." not in path.stem)
    total = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise BrokenWeights(f"{file} cannot be read: {error}.", hint="Fetch the model again.") from error
    return total


def _blocks(folder: Path, vae_scale: int) -> tuple[Blocks, ...]:
    """The denoiser's blocks from its configuration; none where it is of no known kind."""
    if (folder / "unet" / "config.json").is_file():
        return tuple(_unet_blocks(_json(folder / "unet" / "config.json"), vae_scale))
    if not (folder / "transformer" / "config.json").is_file():
        return ()
    config = _json(folder / "transformer" / "config.json")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if config["_class_name"] == "FluxTransformer2DModel":
        return (Blocks(config["num_layers"] + config["num_single_layers"], width, 2 * vae_scale, FLUX_TOKENS),)
    return (Blocks(config["num_layers"], width, config["patch_size"] * vae_scale, T5_AND_CLIP_TOKENS),)


def _unet_blocks(config: Mapping[str, Any], vae_scale: int) -> list[Blocks]:
    """A UNet's levels: residual and transformer blocks on the way down and up, of the width and token size of the level."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    deep = config.get("transformer_layers_per_block", 1)
    deep = [deep] * len(widths) if isinstance(deep, int) else deep
    attends = ["CrossAttn" in kind for kind in config["down_block_types"]]
    counts = [(2 * layers + 1) * (1 + (deep[level] if attends[level] else 0)) for level in range(len(widths))]
    counts[-1] += 2 + deep[-1]  # the middle
    return [Blocks(count, width, vae_scale * 2**level) for level, (count, width) in enumerate(zip(counts, widths, strict=True))]


def _cache(config: Mapping[str, Any]) -> Cache | None:
    """The key-value cache of a vision-language model's text part; None for any other model."""
    text = config.get("text_config", config)
    if "num_key_value_heads" not in text:
        return None
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return Cache(text["num_hidden_layers"], text["num_key_value_heads"], head)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenWeights(f"{path} cannot be read: {error}.", hint="Fetch the model again.") from error
