"""Adapter files: one own layout, the others read and written, every export loaded back and compared.

The own layout is the one that most programs load: diffusers' names, scale baked in, no alpha keys, safetensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from sfumato.diffusion.families.catalog import described_of
from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.lora import kohya
from sfumato.lora.adapter import Adapter, differences, padded
from sfumato.lora.binding import Loader, bound, denoiser_config, denoiser_of
from sfumato.lora.contents import Contents, parse_contents, read_contents
from sfumato.lora.fuse import check_fits
from sfumato.lora.keys import COMFYUI, DIFFUSERS, FLATTENED, Pair, parse_keys
from sfumato.lora.kohya_names import KohyaNames
from sfumato.lora.modules import names_of, pointwise
from sfumato.lora.peft_folder import A_KEY, B_KEY, load_folder, save_folder, scale_of
from sfumato.lora.tensors import factors_of, shaped, to_bytes, write_tensors

# Blocks that only a U-Net has; everything else is a transformer's. The prefix is the denoiser's name in its pipeline.
UNET = re.compile(r"(down_blocks|mid_block|up_blocks|time_embedding|add_embedding|class_embedding|encoder_hid_proj)\b")
DIFFUSERS_METADATA = "lora_adapter_metadata"  # diffusers' own LoraConfig in a file's header


class Layout(StrEnum):
    """What `export` writes."""

    DIFFUSERS = "diffusers"  # one file, for diffusers, ComfyUI and vLLM-Omni
    PEFT = "peft"  # a folder, for PEFT and vLLM
    KOHYA = "kohya"  # one file, for sd-scripts, A1111 and ComfyUI


@dataclass(frozen=True, slots=True)
class Verified:
    """A file as a library has loaded it.

    Attributes:
        difference: the largest relative difference of a module's update (Frobenius).
        loader: the library.
        unread: where the file had to be converted first, what keeps the library from reading it itself; else empty.
    """

    difference: float
    loader: Loader
    unread: str = ""


def component(adapter: Adapter) -> str:
    """The denoiser's name in its pipeline, ``unet`` or ``transformer``, from the names of its modules."""
    return "unet" if all(UNET.match(name) for name in adapter.factors) else "transformer"


def state_dict(adapter: Adapter) -> dict[str, Tensor]:
    """Tensors by diffusers' keys, such as ``transformer.<module>.lora_A.weight`` and ``lora_B``."""
    prefix = f"{component(adapter)}."
    tensors = {}
    for name, (a, b) in shaped(adapter).items():
        tensors[f"{prefix}{name}{A_KEY}"], tensors[f"{prefix}{name}{B_KEY}"] = a, b
    return tensors


def save(adapter: Adapter, path: Path) -> None:
    """Write the adapter; equal adapters give equal bytes, and loaders ignore the metadata.

    Raises:
        InvalidInput: the path cannot be written.
    """
    write_tensors(state_dict(adapter), path, adapter.metadata)


def export(adapter: Adapter, path: Path, layout: Layout, pipeline: DiffusionPipeline) -> Verified:
    """Write the adapter for another program, load it back and compare (see `verify`).

    All modules are written with one rank, smaller ones filled up with zeros: diffusers before 0.42 gives modules of other ranks a wrong
    scale where a file has no alphas.

    Args:
        adapter: of the denoiser of ``pipeline``.
        path: a file, or for PEFT a folder.
        layout: whose.
        pipeline: of the model it is for; only its configuration is used, so `skeleton` will do.

    Raises:
        InvalidInput: a module has no place in that layout, or the path cannot be written.
        BrokenWeights: what was written does not load as it should.
    """
    denoiser = denoiser_of(pipeline)
    check_fits(adapter, denoiser)
    convolutions = frozenset(name for name in adapter.factors if pointwise(denoiser.get_submodule(name)))
    adapter = padded(replace(adapter, pointwise=convolutions))
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
    return kohya.tensors_of(adapter, names)


def load(path: Path, denoiser: nn.Module | None = None, *, without_text_encoders: bool = False) -> Adapter:
    """Read an adapter: a file of any layout in `sfumato.lora.keys`, or PEFT's folder. It is read completely or not at all.

    Args:
        path: the file or folder.
        denoiser: the model it is for, whose module names are known then; the families' names are always known.
        without_text_encoders: leave a text encoder's keys out; they are refused otherwise.

    Raises:
        MissingWeights: there is no such file.
        BrokenWeights: it is no plain LoRA of a denoiser; the message names the key and what to do.
    """
    path = Path(path)
    if path.is_dir():
        return load_folder(path)
    return _adapter(read_contents(path), str(path), denoiser, without_text_encoders)


def loads(data: bytes) -> Adapter:
    """Read an adapter from the bytes of a file; see `load`."""
    return _adapter(parse_contents(data, "the adapter"), "the adapter", None, False)


def dumps(adapter: Adapter) -> bytes:
    """The bytes of the file that `save` writes."""
    return to_bytes(state_dict(adapter), adapter.metadata)


def _adapter(contents: Contents, where: str, denoiser: nn.Module | None, without_text_encoders: bool) -> Adapter:
    parsed = parse_keys(contents, where, without_text_encoders=without_text_encoders)
    config = _diffusers_config(contents.header, parsed.prefix, where)
    names = None if parsed.prefix in DIFFUSERS else names_of(denoiser)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    convolutions = set()
    for pair in parsed.pairs:
        halves = factors_of(pair, _scale(pair, config, where), where)
        modules = {pair.name: halves} if names is None else kohya.resolve(pair.name, halves, names, where)
        for module in modules:
            if module in factors:
                raise BrokenWeights(f"{where}: {pair.name} means {module}, which another key means too.", hint="Remove one of them.")
        factors |= modules
        convolutions |= set(modules) if pair.pointwise else set()
    if not factors:
        raise BrokenWeights(f"{where}: every update in it is zero.", hint="Was it trained?")
    return Adapter(dict(sorted(factors.items())), contents.metadata, frozenset(convolutions))


def _scale(pair: Pair, config: Mapping[str, Any] | None, where: str) -> float:
    """What the product of a pair is multiplied with: alpha / rank, or what the config says."""
    if pair.alpha is not None and config is not None:
        raise BrokenWeights(f"{where}: {pair.name} has an alpha key beside {DIFFUSERS_METADATA}.", hint="Remove one of them.")
    if pair.alpha is not None:
        return pair.alpha / pair.rank
    return 1.0 if config is None else scale_of(config, pair.name, pair.rank, where)


def _diffusers_config(header: Mapping[str, str], prefix: str, where: str) -> dict[str, Any] | None:
    """The LoraConfig that diffusers puts into a file's header: where it is, it gives the scale."""
    if DIFFUSERS_METADATA not in header or prefix in (*COMFYUI, *FLATTENED):
        return None
    try:
        everything = json.loads(header[DIFFUSERS_METADATA])
        config = {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}
    except (json.JSONDecodeError, RecursionError, AttributeError) as error:
        raise BrokenWeights(f"{where}: its {DIFFUSERS_METADATA} is not a JSON object.", hint="Save it with diffusers again.") from error
    if config.get("use_dora"):
        raise BrokenWeights(f"{where} is DoRA's.", hint="Only plain LoRAs are read; merge it into the model instead.")
    return config or None


def verify(path: Path, pipeline: DiffusionPipeline, adapter: Adapter, *, tolerance: float = 1e-4) -> Verified:
    """Load the file or folder as its users will, onto an empty copy of the pipeline's denoiser, and compare every update.

    Libraries load a LoRA that fits only in part without an error; here an unbound key, an extra module or another update is one. The
    pipeline itself is not touched. A file in another program's layout that diffusers does not read, or reads in part, is converted first,
    and the answer says so.

    Raises:
        BrokenWeights: naming what did not bind or differs by more than ``tolerance``.
    """
    if path.is_dir():
        return Verified(_compared(bound(path, pipeline, Loader.PEFT), adapter, str(path), tolerance), Loader.PEFT)
    prefix = parse_keys(read_contents(path), str(path)).prefix
    loader = Loader.DIFFUSERS if prefix else Loader.BARE
    try:
        return Verified(_compared(bound(path, pipeline, loader), adapter, str(path), tolerance), loader)
    except BrokenWeights as error:
        if prefix in DIFFUSERS:
            raise
        converted = bound(state_dict(padded(load(path, denoiser_of(pipeline)))), pipeline, Loader.CONVERTED)
        return Verified(_compared(converted, adapter, str(path), tolerance), Loader.CONVERTED, error.message)


def _compared(found: Adapter | None, adapter: Adapter, where: str, tolerance: float) -> float:
    """The largest relative difference of an update between what a library has bound and the adapter."""
    names = set(found.factors) if found else set()
    missing = sorted(set(adapter.factors) - names)
    # Fused layouts fill up with zeros what the adapter does not have: that is no update.
    extra = sorted(name for name in names - set(adapter.factors) if found and found.factors[name][1].any())
    if missing or extra or found is None:
        raise BrokenWeights(f"{where} binds wrongly: missing {missing[:3]}, unexpected {extra[:3]}.", hint="Is it of this model?")
    apart = differences(found, adapter)
    worst = max(adapter.factors, key=lambda name: apart[name])
    if not apart[worst] <= tolerance:
        raise BrokenWeights(f"{where}: the update of {worst} differs by {apart[worst]:.2e} after loading.", hint="Export it again.")
    return apart[worst]
