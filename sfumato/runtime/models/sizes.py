"""How large a model is, without loading it: from the headers of its files, or, where it is not here, from what is published."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sfumato.diffusion.families.catalog import described, families
from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.sizes import Blocks as Blocks
from sfumato.sizes import Cache as Cache
from sfumato.sizes import ModelSize as ModelSize

# The counts below are those of the published config.json of each part, counted by building it on torch's meta device.
_CLIP_H = ModelSize({"model": 986_109_441}, file_bytes=4)  # ViT-H/14: laion/CLIP-ViT-H-14-laion2B-s32B-b79K, config.json


KNOWN: Mapping[str, ModelSize] = {
    **{name: size for family in families() for name, size in family.published.items()},
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
        InvalidInput: the pipeline or its denoiser is of no supported family.
        BrokenWeights: a file that is needed is absent or damaged.
    """
    if (folder / "model_index.json").is_file():
        return _pipeline(folder)
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return ModelSize({"model": _parameters(folder)}, cache=_cache(config))


def _pipeline(folder: Path) -> ModelSize:
    index = _json(folder / "model_index.json")
    family = described(str(index.get("_class_name")))
    config = _json(folder / family.denoiser_part / "config.json")
    if config.get("_class_name") != family.denoiser_class:
        what = f"the denoiser of {folder} is a {config.get('_class_name')}, and a {family.pipeline_class} has a {family.denoiser_class}."
        raise InvalidInput("model", what, hint="Its size and its memory are not known.")
    parts = [name for name, kind in index.items() if isinstance(kind, list) and kind[0] and (folder / name).is_dir()]
    counted = {name: _parameters(folder / name) for name in parts}
    channels = _json(folder / "vae" / "config.json")["block_out_channels"]
    blocks = family.blocks(config, 2 ** (len(channels) - 1))
    parameters = {name: count for name, count in counted.items() if count}
    return ModelSize(parameters, blocks, channels[1], classifier_free=family.classifier_free)


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
