"""Adapter files in the layout that loads everywhere: diffusers' names, scale baked in, no alpha keys, safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import FluxPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato.errors import BrokenWeights, MissingWeights
from sfumato.lora.adapter import Adapter, delta

PREFIX = "transformer."
A_KEY, B_KEY = ".lora_A.weight", ".lora_B.weight"
VERIFY = "sfumato_verify"


def state_dict(adapter: Adapter) -> dict[str, Tensor]:
    """Tensors by diffusers' Flux keys, ``transformer.<module>.lora_A.weight`` and ``lora_B``."""
    tensors = {}
    for name, (a, b) in adapter.factors.items():
        tensors[f"{PREFIX}{name}{A_KEY}"] = a.detach().cpu().clone(memory_format=torch.contiguous_format)
        tensors[f"{PREFIX}{name}{B_KEY}"] = b.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors


def save(adapter: Adapter, path: Path) -> None:
    """Write the adapter; its metadata goes under names of our own, which loaders ignore."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | {f"sfumato.{key}": value for key, value in adapter.metadata.items()}
    save_file(state_dict(adapter), path, metadata=metadata)


def load(path: Path) -> Adapter:
    """Read an adapter written by `save`, or any diffusers Flux LoRA without alpha keys.

    Raises:
        MissingWeights: there is no such file.
        BrokenWeights: it is not a safetensors file, or holds a key that is not half of a pair ``lora_A``/``lora_B``.
    """
    if not Path(path).is_file():
        raise MissingWeights(f"There is no adapter at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
            metadata = {key.removeprefix("sfumato."): v for key, v in (file.metadata() or {}).items() if key.startswith("sfumato.")}
    except SafetensorError as error:
        raise BrokenWeights(f"{path} is not a readable safetensors file: {error}.") from error
    names = {key.removeprefix(PREFIX).removesuffix(A_KEY).removesuffix(B_KEY) for key in tensors}
    expected = {f"{PREFIX}{name}{half}" for name in names for half in (A_KEY, B_KEY)}
    if expected != set(tensors) or not names:
        odd = sorted(expected ^ set(tensors))[:3]
        raise BrokenWeights(f"{path} is not a diffusers LoRA without alpha keys: see {', '.join(odd) or 'no keys'}.")
    return Adapter({name: (tensors[f"{PREFIX}{name}{A_KEY}"], tensors[f"{PREFIX}{name}{B_KEY}"]) for name in sorted(names)}, metadata)


def verify(path: Path, pipeline: FluxPipeline, adapter: Adapter, *, tolerance: float = 1e-4) -> float:
    """Load the file back through the pipeline's own ``load_lora_weights`` and compare every module's update.

    A LoRA that binds partly binds silently; here an unbound key, an extra module or another update is an error. The
    pipeline is left as it was found.

    Returns:
        The largest relative difference of a module's update (Frobenius).

    Raises:
        BrokenWeights: naming what did not bind or differs by more than ``tolerance``.
    """
    with _quiet():
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=VERIFY, local_files_only=True)
    try:
        bound = _bound_updates(pipeline)
    finally:
        pipeline.delete_adapters(VERIFY)
        if not getattr(pipeline.transformer, "peft_config", {}):
            pipeline.unload_lora_weights()
    missing = sorted(set(adapter.factors) - set(bound))
    extra = sorted(set(bound) - set(adapter.factors))
    if missing or extra:
        raise BrokenWeights(f"{path} binds wrongly: missing {missing[:3]}, unexpected {extra[:3]}.")
    worst = 0.0
    for name, update in bound.items():
        wanted = delta(adapter, name)
        difference = float((update - wanted).norm() / wanted.norm().clamp_min(1e-12))
        if not difference <= tolerance:
            raise BrokenWeights(f"{path}: the update of {name} differs by {difference:.2e} after loading.")
        worst = max(worst, difference)
    return worst


def _bound_updates(pipeline: FluxPipeline) -> dict[str, Tensor]:
    updates = {}
    for name, module in pipeline.transformer.named_modules():
        if VERIFY in getattr(module, "lora_A", {}):
            a, b = module.lora_A[VERIFY].weight, module.lora_B[VERIFY].weight
            with torch.no_grad():
                updates[name] = (b.float() @ a.float()).cpu() * module.scaling[VERIFY]
    return updates


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of diffusers (that there is no text encoder LoRA, that keys did not bind): `verify` raises what matters."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
