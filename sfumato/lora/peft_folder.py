"""PEFT's folder: ``adapter_config.json`` and ``adapter_model.safetensors``, names behind ``base_model.model.``.

Written with one rank and one alpha equal to it, smaller modules padded with zeros: readers that take one rank for all (vLLM's) and
PEFT itself then build the same update.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights
from sfumato.lora.adapter import Adapter
from sfumato.lora.tensors import read_tensors, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
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
    for name, (a, b) in adapter.factors.items():
        missing = rank - a.shape[0]
        tensors[f"{PREFIX}{name}{A_KEY}"] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        tensors[f"{PREFIX}{name}{B_KEY}"] = torch.nn.functional.pad(b, (0, missing))
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
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenWeights(f"{folder / CONFIG} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise BrokenWeights(f"{folder / CONFIG} is not a JSON object.")
    for field, harmless in HARMLESS.items():
        if (value := config.get(field, harmless[0])) not in harmless:
            raise BrokenWeights(f"{folder}: {field} is {value!r}, which is no plain LoRA.", hint="Merge or convert it with PEFT first.")
    tensors, metadata, _ = read_tensors(folder / WEIGHTS)
    names = sorted({key.removeprefix(PREFIX).removesuffix(A_KEY).removesuffix(B_KEY) for key in tensors})
    expected = {f"{PREFIX}{name}{half}" for name in names for half in (A_KEY, B_KEY)}
    if expected != set(tensors):
        raise BrokenWeights(f"{folder / WEIGHTS}: {sorted(expected ^ set(tensors))[0]} is not half of a pair of lora_A and lora_B.")
    factors = {}
    for name in names:
        a, b = tensors[f"{PREFIX}{name}{A_KEY}"], tensors[f"{PREFIX}{name}{B_KEY}"]
        scale = scale_of(config, name, a.shape[0], str(folder / CONFIG))
        factors[name] = (a, b if scale == 1 else b.float() * scale)
    return Adapter(factors, metadata)


def scale_of(config: Mapping[str, Any], name: str, rank: int, where: str) -> float:
    """What PEFT multiplies ``B A`` of one module with: alpha / rank, or alpha / sqrt(rank); patterns by PEFT's own rule.

    Raises:
        BrokenWeights: the config has no rank and alpha for the module, or another rank than its factors.
    """
    try:
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        said = ranks.get(get_pattern_key(list(ranks), name), config["r"])
        alpha = float(alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokenWeights(f"{where} gives no rank and alpha for {name}: {error!r}.") from error
    if said != rank:
        raise BrokenWeights(f"{where} says that {name} has rank {said}, but it has {rank}.")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
