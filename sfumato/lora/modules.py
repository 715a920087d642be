"""The names of the modules that a denoiser has, taken from the modules themselves.

Layouts that flatten names (``attn_to_out_0``) are read with these: where a dot stood is not written in them. Indices of blocks are
free, so that a small denoiser of a family gives the names of every size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import diffusers
import torch
from torch import nn

from sfumato.diffusion.families.catalog import families
from sfumato.diffusion.families.description import Description


def adaptable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model whose weight an adapter changes, by name: linear layers and 1x1 convolutions."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or pointwise(module):
            yield name, module


def pointwise(module: nn.Module) -> bool:
    """Whether this is a convolution that is a linear layer on every pixel."""
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        return False
    return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding in ((0, 0), "valid", "same")


class ModuleNames:
    """Finds the dotted name of a flattened one. Names may differ from the known ones in the indices of blocks."""

    def __init__(self, names: Iterable[str]) -> None:
        self._templates: dict[str, list[str]] = {}
        for name in dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name) for name in names):
            self._templates.setdefault(_shape(name.replace(".", "_")), []).append(name)

    def dotted(self, flat: str) -> str | None:
        """The name whose dots were replaced by ``_``; None if no module is known that has it."""
        for template in self._templates.get(_shape(flat), ()):
            pattern = re.escape(template.replace(".", "_")).replace(r"\#", r"(\d+)")
            if match := re.fullmatch(pattern, flat):
                indices = iter(match.groups())
                return re.sub("#", lambda _, indices=indices: next(indices), template)
        return None


def _shape(flat: str) -> str:
    """A flattened name with every number that stands alone as #."""
    return "_".join("#" if token.isdecimal() else token for token in flat.split("_"))


def names_of(model: nn.Module | None) -> ModuleNames:
    """The names of a denoiser's modules and of every family's: those of a model that is not at hand."""
    known = _family_names(tuple(families()))
    if model is None:
        return ModuleNames(known)
    return ModuleNames((*(name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))), *known))


@cache
def _family_names(described: tuple[type[Description], ...]) -> tuple[str, ...]:
    """Linear layers and convolutions of the smallest denoiser that has each family's kinds of modules, built without memory."""
    names: dict[str, None] = {}
    for family in described:
        denoiser: Any = getattr(diffusers, family.denoiser_class)
        with torch.device("meta"):
            model: nn.Module = denoiser.from_config(dict(family.outline))
        names |= {name: None for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    return tuple(names)
