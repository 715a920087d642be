"""Adapter files: one own layout, the others read and written, every export loaded back and compared.

The own layout is the one that most programs load: diffusers' names, scale baked in, no alpha keys, safetensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from sfumato.diffusion.families.catalog import DENOISERS, described_of
from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.lora import kohya
from sfumato.lora.adapter import Adapter, differences, padded
from sfumato.lora.binding import Loader, bound, denoiser_config, denoiser_of
from sfumato.lora.fuse import check_fits
from sfumato.lora.kohya_names import KohyaNames
from sfumato.lora.peft_folder import A_KEY, B_KEY, load_folder, save_folder, scale_of
from sfumato.lora.tensors import read_tensors, write_tensors

# Blocks that only a U-Net has; everything else is a transformer's. The prefix is the denoiser's name in its pipeline.
UNET = re.compile(r"(down_blocks|mid_block|up_blocks|time_embedding|add_embedding)\b")
DIFFUSERS_METADATA = "lora_adapter_metadata"  # diffusers' own LoraConfig in a file's header

# Keys that other kinds of adapters have: what they are, and what can be done.
FOREIGN = (
    (r"dora_scale|lora_magnitude_vector", "is DoRA's", "Only plain LoRAs are read; merge it into the model instead."),
    (r"\.(hada|lokr|oft)_|\.lora_mid\.", "is LyCORIS'", "Only plain LoRAs are read; convert or merge it first."),
    (r"^(lora_te\d?_|text_encoders?[._]|conditioner\.)", "is a text encoder's", "Only the denoiser is adapted here; remove these keys."),
    (r"\.diff(_b)?$|\.bias$", "is a whole weight or bias", "Only plain LoRAs are read; remove it, or merge the file into the model."),
    (r"^base_model\.", "is PEFT's", "Give the folder with its adapter_config.json, which holds the scale."),
    (r"\.processor\.|^(double|single)_blocks\.", "is of an old or foreign layout", "Load and save it with diffusers first."),
)


class Layout(StrEnum):
    """What `export` writes."""

    DIFFUSERS = "diffusers"  # one file, for diffusers, ComfyUI and vLLM-Omni
    PEFT = "peft"  # a folder, for PEFT and vLLM
    KOHYA = "kohya"  # one file, for sd-scripts, A1111 and ComfyUI


def component(adapter: Adapter) -> str:
    """The denoiser's name in its pipeline, ``unet`` or ``transformer``, from the names of its modules."""
    return "unet" if all(UNET.match(name) for name in adapter.factors) else "transformer"


def state_dict(adapter: Adapter) -> dict[str, Tensor]:
    """Tensors by diffusers' keys, such as ``transformer.<module>.lora_A.weight`` and ``lora_B``."""
    prefix = f"{component(adapter)}."
    tensors = {}
    for name, (a, b) in adapter.factors.items():
        tensors[f"{prefix}{name}{A_KEY}"], tensors[f"{prefix}{name}{B_KEY}"] = a, b
    return tensors


def save(adapter: Adapter, path: Path) -> None:
    """Write the adapter; equal adapters give equal bytes, and loaders ignore the metadata.

    Raises:
        InvalidInput: the path cannot be written.
    """
    write_tensors(state_dict(adapter), path, adapter.metadata)


def export(adapter: Adapter, path: Path, layout: Layout, pipeline: DiffusionPipeline) -> float:
    """Write the adapter for another program, load it back and compare (see `verify`).

    Args:
        adapter: of the denoiser of ``pipeline``.
        path: a file, or for PEFT a folder.
        layout: whose.
        pipeline: of the model it is for; only its configuration is used, so `skeleton` will do.

    Returns:
        The largest relative difference of a module's update after loading.

    Raises:
        InvalidInput: a module has no place in that layout, or the path cannot be written.
        BrokenWeights: what was written does not load as it should.
    """
    check_fits(adapter, denoiser_of(pipeline))
    if layout is Layout.PEFT:
        save_folder(adapter, path)
    elif layout is Layout.KOHYA:
        write_tensors(_kohya_tensors(adapter, pipeline), path, adapter.metadata)
    else:
        save(adapter, path)
    return verify(path, pipeline, adapter)


def layouts_of(pipeline: DiffusionPipeline) -> list[Layout]:
    """The layouts in which adapters of this model can be exported and loaded back."""
    return [layout for layout in Layout if layout is not Layout.KOHYA or _kohya_names(pipeline) is not None]


def _kohya_names(pipeline: DiffusionPipeline) -> KohyaNames | None:
    return described_of(type(pipeline)).kohya(denoiser_config(pipeline))


def _kohya_tensors(adapter: Adapter, pipeline: DiffusionPipeline) -> dict[str, Tensor]:
    names = _kohya_names(pipeline)
    if names is None:
        name = type(pipeline).__name__.removesuffix("Pipeline")
        raise InvalidInput("as", f"diffusers reads no kohya layout of {name}.", hint="Export it as diffusers; ComfyUI reads that.")
    return kohya.tensors_of((padded(adapter, max(adapter.ranks.values())) if names.one_rank else adapter).factors, names)


def load(path: Path) -> Adapter:
    """Read an adapter: a diffusers or kohya file, or PEFT's folder. It is read completely or not at all.

    Raises:
        MissingWeights: there is no such file.
        BrokenWeights: it is no plain LoRA of a denoiser; the message names the key and what to do.
    """
    path = Path(path)
    if path.is_dir():
        return load_folder(path)
    tensors, metadata, header = read_tensors(path)
    _refuse_foreign(tensors, str(path))
    if any(key.endswith(kohya.DOWN) and key.startswith(kohya.PREFIXES) for key in tensors):
        factors = kohya.read_factors(tensors, str(path))
    else:
        factors = _read_diffusers(tensors, header, str(path))
    for name, (a, b) in factors.items():
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise BrokenWeights(f"{path}: {name} holds numbers that are not finite.", hint="Fetch it again.")
    if not factors:
        raise BrokenWeights(f"{path}: every update in it is zero.")
    return Adapter(factors, metadata)


def _refuse_foreign(tensors: Mapping[str, Tensor], where: str) -> None:
    if not tensors:
        raise BrokenWeights(f"{where} is no LoRA: it has no keys.")
    for key in sorted(tensors):
        for pattern, what, hint in FOREIGN:
            if re.search(pattern, key):
                raise BrokenWeights(f"{where}: the key {key} {what}.", hint=hint)


def _read_diffusers(tensors: Mapping[str, Tensor], header: Mapping[str, str], where: str) -> dict[str, tuple[Tensor, Tensor]]:
    pattern = re.compile(rf"({'|'.join(DENOISERS)})\.(.+)\.(lora_A\.weight|lora_B\.weight|lora\.down\.weight|lora\.up\.weight|alpha)")
    halves = {"lora_A.weight": "lora_A", "lora.down.weight": "lora_A", "lora_B.weight": "lora_B", "lora.up.weight": "lora_B"}
    modules: dict[str, dict[str, Tensor]] = {}
    prefixes = set()
    for key, tensor in tensors.items():
        match = pattern.fullmatch(key)
        if match is None:
            raise BrokenWeights(f"{where}: the key {key} is not of a LoRA.", hint="Keys are such as transformer.<module>.lora_A.weight.")
        prefixes.add(match[1])
        modules.setdefault(match[2], {})[halves.get(match[3], match[3])] = tensor
    if len(prefixes) > 1:
        raise BrokenWeights(f"{where} holds keys of a transformer and of a unet: it is of no one model.")
    config = _diffusers_config(header, prefixes.pop(), where)
    factors = {}
    for name, parts in sorted(modules.items()):
        a, b, alpha = parts.get("lora_A"), parts.get("lora_B"), parts.get("alpha")
        if a is None or b is None:
            there = " and ".join(sorted(parts))
            raise BrokenWeights(f"{where}: {name} has {there} only, no pair of lora_A and lora_B.", hint="Was it edited?")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise BrokenWeights(f"{where}: {name} has factors {shapes}, which do not multiply.", hint="Only linear layers are read.")
        if alpha is not None and config is not None:
            raise BrokenWeights(f"{where}: {name} has an alpha key beside {DIFFUSERS_METADATA}.", hint="Remove one of them.")
        scale = float(alpha) / a.shape[0] if alpha is not None else 1.0 if config is None else scale_of(config, name, a.shape[0], where)
        factors[name] = (a, b if scale == 1 else b.float() * scale)
    return factors


def _diffusers_config(header: Mapping[str, str], prefix: str, where: str) -> dict[str, Any] | None:
    """The LoraConfig that diffusers puts into a file's header: where it is, it gives the scale."""
    if DIFFUSERS_METADATA not in header:
        return None
    try:
        everything = json.loads(header[DIFFUSERS_METADATA])
        config = {key.removeprefix(f"{prefix}."): value for key, value in everything.items() if key.startswith(f"{prefix}.")}
    except (json.JSONDecodeError, AttributeError) as error:
        raise BrokenWeights(f"{where}: its {DIFFUSERS_METADATA} is not a JSON object.") from error
    if config.get("use_dora"):
        raise BrokenWeights(f"{where} is DoRA's.", hint="Only plain LoRAs are read; merge it into the model instead.")
    return config or None


def loader_for(path: Path, pipeline: DiffusionPipeline) -> Loader:
    """The library that loads this file back: PEFT a folder, diffusers a file.

    Files in kohya's layout that diffusers does not read for this denoiser are converted here first.
    """
    if path.is_dir():
        return Loader.PEFT
    if not described_of(type(pipeline)).diffusers_reads_kohya(denoiser_config(pipeline)):
        tensors, _, _ = read_tensors(path)
        if any(key.startswith(kohya.PREFIX) for key in tensors):
            return Loader.CONVERTED
    return Loader.DIFFUSERS


def verify(path: Path, pipeline: DiffusionPipeline, adapter: Adapter, *, tolerance: float = 1e-4) -> float:
    """Load the file or folder as its users will, onto an empty copy of the pipeline's denoiser, and compare every update.

    Libraries load a LoRA that fits only in part without an error; here an unbound key, an extra module or another update is one. The
    pipeline itself is not touched.

    Returns:
        The largest relative difference of a module's update (Frobenius).

    Raises:
        BrokenWeights: naming what did not bind or differs by more than ``tolerance``.
    """
    loader = loader_for(path, pipeline)
    source = state_dict(load(path)) if loader is Loader.CONVERTED else path
    found = bound(source, pipeline, loader)
    names = set(found.factors) if found else set()
    missing = sorted(set(adapter.factors) - names)
    # Fused layouts fill up with zeros what the adapter does not have: that is no update.
    extra = sorted(name for name in names - set(adapter.factors) if found and found.factors[name][1].any())
    if missing or extra or found is None:
        raise BrokenWeights(f"{path} binds wrongly: missing {missing[:3]}, unexpected {extra[:3]}.")
    apart = differences(found, adapter)
    worst = max(adapter.factors, key=lambda name: apart[name])
    if not apart[worst] <= tolerance:
        raise BrokenWeights(f"{path}: the update of {worst} differs by {apart[worst]:.2e} after loading.")
    return apart[worst]
