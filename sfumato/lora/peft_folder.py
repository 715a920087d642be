"""PEFT's folder: ``adapter_config.json`` and ``adapter_model.safetensors``, names behind ``base_model.model.``.

Written with one rank and one alpha equal to it, smaller modules padded with zeros: readers that take one rank for all (vLLM's) and
PEFT itself then build the same update.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key
from torch import Tensor

from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights
from sfumato.lora.adapter import Adapter, padded
from sfumato.lora.contents import read_contents
from sfumato.lora.keys import PEFT, parse_keys
from sfumato.lora.tensors import factors_of, shaped, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A_KEY, B_KEY = ".lora_A.weight", ".lora_B.weight"

# What changes the meaning of the factors, the harmless value first: such a folder is refused, not half read.
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


def save_folder(adapter: Adapter, folder: Path) -> None:
    """Write the folder.

    Raises:
        InvalidInput: ``folder`` is a file, or cannot be written.
    """
    if folder.is_file():
        raise InvalidInput("output", f"{folder} is a file; a PEFT adapter is a folder.")
    rank = max(adapter.ranks.values())
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in shaped(padded(adapter)).items():
        tensors[f"{PEFT}{name}{A_KEY}"], tensors[f"{PEFT}{name}{B_KEY}"] = a, b
    write_tensors(tensors, folder / WEIGHTS, adapter.metadata)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(adapter.factors),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_folder(folder: Path) -> Adapter:
    """Read such a folder, PEFT's or our own; per-module alphas and rank-stabilised scales are baked in.

    Raises:
        MissingWeights: one of the two files is absent.
        BrokenWeights: the config is no LoRA's, or a key is not half of a pair; the message names it.
    """
    if not (folder / CONFIG).is_file():
        raise MissingWeights(f"{folder} holds no {CONFIG}.", hint="Give a PEFT adapter's folder, or a .safetensors file.")
    if not (folder / WEIGHTS).is_file():
        raise MissingWeights(f"{folder} holds no {WEIGHTS}.", hint="Only safetensors are read: save it with PEFT's safe_serialization.")
    config = _read_config(folder / CONFIG)
    where = str(folder / WEIGHTS)
    contents = read_contents(folder / WEIGHTS)
    parsed = parse_keys(contents, where, prefixes=(PEFT,))
    if parsed.prefix != PEFT or any(pair.alpha is not None for pair in parsed.pairs):
        raise BrokenWeights(f"{where} is not PEFT's: its keys have alphas, or do not begin with {PEFT}.", hint="Was it edited?")
    factors = {pair.name: factors_of(pair, scale_of(config, pair.name, pair.rank, str(folder / CONFIG)), where) for pair in parsed.pairs}
    return Adapter(factors, contents.metadata, frozenset(pair.name for pair in parsed.pairs if pair.pointwise))


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenWeights(f"{path} is not JSON: {error}.", hint="Fetch it again.") from error
    if not isinstance(config, dict):
        raise BrokenWeights(f"{path} is not a JSON object.", hint="Fetch it again.")
    for field, harmless in HARMLESS.items():
        if (value := config.get(field, harmless[0])) not in harmless:
            words = f"{path}: {field} is {value!r}; only plain LoRAs are read."
            raise BrokenWeights(words, hint="Convert or merge it with PEFT first.")
    return config


def scale_of(config: Mapping[str, Any], name: str, rank: int, where: str) -> float:
    """What PEFT multiplies ``B A`` of one module with: alpha / rank, or alpha / sqrt(rank); patterns by PEFT's own rule.

    Raises:
        BrokenWeights: the config has no rank and alpha for the module, or another rank than its factors.
    """
    try:
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        said = ranks.get(get_pattern_key(list(ranks), name), config["r"])
        alpha = float(alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"]))
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise BrokenWeights(f"{where} gives no rank and alpha for {name}: {error!r}.") from error
    if said != rank:
        raise BrokenWeights(f"{where} says that {name} has rank {said}, but it has {rank}.")
    if not math.isfinite(alpha) or alpha == 0:
        raise BrokenWeights(f"{where}: the alpha of {name} is {alpha}.", hint="Was it edited? An alpha is often the rank.")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
