"""The layout of kohya's sd-scripts, which ComfyUI and A1111 read too: flattened names, ``lora_down``, ``lora_up``, ``alpha``.

The names are those of a model's first publication, in which several of diffusers' linears may be one (Flux's q, k, v): the parts' factors
stand block-diagonally in the fused ones, so the fused update is exactly the parts' updates below each other. Each family has its names
in its own file (`sfumato.lora.kohya_names.KohyaNames`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfumato.diffusion.families.catalog import families
from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.lora.kohya_names import FLAT, KohyaNames

PREFIX = "lora_unet_"
PREFIXES = (PREFIX, "lora_transformer_", "diffusion_model.")  # sd-scripts', OneTrainer's, ComfyUI's own
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
Factors = dict[str, tuple[Tensor, Tensor]]


def tensors_of(factors: Mapping[str, tuple[Tensor, Tensor]], names: KohyaNames) -> dict[str, Tensor]:
    """An adapter's tensors in this layout.

    Raises:
        InvalidInput: a module that has no place in it, or a linear of another shape than the fused one's.
    """
    groups: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for name, pair in factors.items():
        stem, place = names.published(name)
        groups.setdefault(stem, {})[place] = pair
    tensors: dict[str, Tensor] = {}
    for stem, parts in sorted(groups.items()):
        modules = names.modules(stem) or ("",)
        down, up = parts[0] if len(modules) == 1 else _fused(stem, parts, modules, names)
        tensors |= _entry(stem, down, up)
    return tensors


def read_factors(tensors: Mapping[str, Tensor], where: str) -> Factors:
    """Factors by diffusers' module names, alphas baked in; every tensor is used or refused.

    Names of every family of the catalog are read, and diffusers' own. Any width is read (diffusers' own converter reads FLUX.1's only).

    Raises:
        BrokenWeights: naming the key that has no counterpart or no place.
    """
    dialects = [*(names for family in families() for names in family.kohya_dialects()), FLAT]
    factors: Factors = {}
    for stem in sorted({_stem(key, where) for key in tensors}):
        prefix = next(p for p in PREFIXES if stem.startswith(p))
        down, up = tensors.get(f"{stem}{DOWN}"), tensors.get(f"{stem}{UP}")
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise BrokenWeights(f"{where}: {stem} has no lora_down and lora_up that fit as matrices.", hint="Only linear layers are read.")
        alpha = tensors.get(f"{stem}{ALPHA}")
        if alpha is not None and float(alpha) != down.shape[0]:
            up = up.float() * (float(alpha) / down.shape[0])
        for name, pair in _split(stem.removeprefix(prefix).replace(".", "_"), down, up, dialects, where).items():
            if name in factors:
                raise BrokenWeights(f"{where}: {stem} means {name}, which another key means too.")
            factors[name] = pair
    return factors


def _stem(key: str, where: str) -> str:
    for suffix in (DOWN, UP, ALPHA):
        if key.endswith(suffix) and key.startswith(PREFIXES):
            return key.removesuffix(suffix)
    raise BrokenWeights(f"{where}: the key {key} is not of a denoiser's LoRA in kohya's layout.", hint="Remove it, or convert the file.")


def _entry(stem: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """Alpha is the rank, so the scale is one wherever the file is read."""
    key = f"{PREFIX}{stem}"
    return {f"{key}{DOWN}": down, f"{key}{UP}": up, f"{key}{ALPHA}": torch.tensor(float(down.shape[0]))}


def _fused(stem: str, pairs: Mapping[int, tuple[Tensor, Tensor]], modules: Sequence[str], names: KohyaNames) -> tuple[Tensor, Tensor]:
    """One pair of factors for several modules of one input: their factors stand block-diagonally in it."""
    width = next(iter(pairs.values()))[0].shape[1]
    heights = names.heights(modules, width)
    down = torch.cat([pairs[place][0] for place in sorted(pairs)])
    up = torch.zeros(sum(heights), down.shape[0], dtype=torch.result_type(*next(iter(pairs.values()))))
    column = 0
    for place in sorted(pairs):
        a, b = pairs[place]
        if a.shape[1] != width or b.shape[0] != heights[place]:
            shapes = f"{b.shape[0]}x{a.shape[1]}, not {heights[place]}x{width}"
            raise InvalidInput("adapter", f"{modules[place]} is {shapes}.", hint="It is an adapter of another model.")
        row = sum(heights[:place])
        up[row : row + heights[place], column : column + a.shape[0]] = b
        column += a.shape[0]
    return down, up


def _split(stem: str, down: Tensor, up: Tensor, dialects: Sequence[KohyaNames], where: str) -> Factors:
    """The modules of diffusers in one entry; a module whose rows are all zero is left out."""
    for names in dialects:
        if modules := names.modules(stem):
            break
    else:
        raise BrokenWeights(f"{where}: {stem} names no linear layer that is known here.", hint="It is a LoRA of another model.")
    if len(modules) == 1:
        return {modules[0]: (down, up)}
    heights = names.heights(modules, down.shape[1])
    if sum(heights) != up.shape[0]:
        raise BrokenWeights(f"{where}: {stem} is {up.shape[0]} high, not {sum(heights)}.", hint="It is a LoRA of another model.")
    factors: Factors = {}
    for module, rows in zip(modules, up.split(heights), strict=True):
        used = rows.ne(0).any(0)  # block-diagonal factors come apart into the ranks they were made of
        if used.any():
            factors[module] = (down[used], rows[:, used])
    return factors
