"""The published names of modules, as kohya's sd-scripts, ComfyUI and A1111 have them, and kohya's layout of a file.

In the names of a model's first publication several of diffusers' linears may be one (Flux's q, k, v): the parts' factors stand
block-diagonally in the fused ones, so the fused update is exactly the parts' updates below each other. Each family has its names in its own
file (`sfumato.lora.kohya_names.KohyaNames`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfumato.diffusion.families.catalog import families
from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.lora.adapter import Adapter, padded
from sfumato.lora.kohya_names import FLAT, KohyaNames
from sfumato.lora.modules import ModuleNames

PREFIX = "lora_unet_"
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
Factors = dict[str, tuple[Tensor, Tensor]]


def tensors_of(adapter: Adapter, names: KohyaNames) -> dict[str, Tensor]:
    """An adapter's tensors in this layout, all modules filled up to one rank r: a linear that holds n of them has rank n r.

    diffusers parts such a linear into n of rank r again, so that every module has one rank there too: before 0.42 it gave modules of
    other ranks a wrong scale.

    Raises:
        InvalidInput: a module that has no place in it, or a linear of another shape than the fused one's.
    """
    groups: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    flat = {names.published(name)[0] for name in adapter.pointwise}
    for name, pair in padded(adapter).factors.items():
        stem, place = names.published(name)
        groups.setdefault(stem, {})[place] = pair
    tensors: dict[str, Tensor] = {}
    for stem, parts in sorted(groups.items()):
        modules = names.modules(stem, lambda flat: flat) or ("",)
        down, up = parts[0] if len(modules) == 1 else _fused(parts, modules, names)
        if names.halves_swapped(stem):
            up = _swapped(up)
        tensors |= _entry(stem, down[..., None, None], up[..., None, None]) if stem in flat else _entry(stem, down, up)
    return tensors


def resolve(name: str, pair: tuple[Tensor, Tensor], names: ModuleNames, where: str) -> Factors:
    """The modules of diffusers that a published or flattened name means, with their factors.

    Names of every family of the catalog are read, and diffusers' own. Any width is read (diffusers' own converter reads FLUX.1's only).
    A part of a fused linear whose rows are all zero is left out.

    Raises:
        BrokenWeights: the name is not known, or the update is not as high as the linear.
    """
    stem = name.replace(".", "_")
    for dialect in (*(names for family in families() for names in family.kohya_dialects()), FLAT):
        if modules := dialect.modules(stem, names.dotted):
            break
    else:
        raise BrokenWeights(f"{where}: {name} names no module that is known here.", hint="It is a LoRA of another model.")
    down, up = pair
    if dialect.halves_swapped(stem):
        if up.shape[0] % 2:
            raise BrokenWeights(f"{where}: {name} is {up.shape[0]} high, which has no halves.", hint="It is a LoRA of another model.")
        up = _swapped(up)
    if len(modules) == 1:
        return {modules[0]: (down, up)}
    heights = dialect.heights(modules, down.shape[1])
    if sum(heights) != up.shape[0]:
        raise BrokenWeights(f"{where}: {name} is {up.shape[0]} high, not {sum(heights)}.", hint="It is a LoRA of another model.")
    factors: Factors = {}
    for module, rows in zip(modules, up.split(heights), strict=True):
        used = rows.ne(0).any(0)  # block-diagonal factors come apart into the ranks they were made of
        if used.any():
            factors[module] = (down[used], rows[:, used])
    return factors


def _entry(stem: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """Alpha is the rank, so the scale is one wherever the file is read."""
    key = f"{PREFIX}{stem}"
    return {f"{key}{DOWN}": down, f"{key}{UP}": up, f"{key}{ALPHA}": torch.tensor(float(down.shape[0]))}


def _swapped(up: Tensor) -> Tensor:
    """``[out, rank]`` with the upper half of the rows below the lower one."""
    upper, lower = up.chunk(2)
    return torch.cat([lower, upper])


def _fused(pairs: Mapping[int, tuple[Tensor, Tensor]], modules: Sequence[str], names: KohyaNames) -> tuple[Tensor, Tensor]:
    """One pair of factors for several modules of one input: their factors stand block-diagonally in it.

    All pairs have one rank. A module without an update gets zeros of that rank, unless there is one pair only.
    """
    first = next(iter(pairs.values()))[0]
    rank, width = first.shape
    heights = names.heights(modules, width)
    places = sorted(pairs) if len(pairs) == 1 else range(len(modules))
    up = torch.zeros(sum(heights), rank * len(places), dtype=torch.result_type(*next(iter(pairs.values()))))
    downs = []
    for index, place in enumerate(places):
        a, b = pairs.get(place, (torch.zeros_like(first), None))
        downs.append(a)
        if b is None:
            continue
        if a.shape[1] != width or b.shape[0] != heights[place]:
            shapes = f"{b.shape[0]}x{a.shape[1]}, not {heights[place]}x{width}"
            raise InvalidInput("adapter", f"{modules[place]} is {shapes}.", hint="It is an adapter of another model.")
        row = sum(heights[:place])
        up[row : row + heights[place], rank * index : rank * (index + 1)] = b
    return torch.cat(downs), up
