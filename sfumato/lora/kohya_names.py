"""The names that modules have in kohya's layout. Names only: this module can be imported without PyTorch.

A file of that layout has ``lora_unet_<stem>``; a stem is a published linear, in which one or more of diffusers' modules stand one below
the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

NO_PLACE = "Export it as diffusers, which ComfyUI reads too."

Dotted: TypeAlias = Callable[[str], str | None]
"""Finds the name of a module of diffusers by its flattened form; see `sfumato.lora.modules.ModuleNames.dotted`."""


class KohyaNames(Protocol):
    """The published names of one family's modules."""

    def published(self, module: str) -> tuple[str, int]:
        """The stem of one of diffusers' modules, and its place among the modules that stand in it.

        Raises:
            InvalidInput: the module has no place in this layout.
        """
        ...

    def modules(self, stem: str, dotted: Dotted) -> tuple[str, ...] | None:
        """Diffusers' modules that stand in a stem, in order; None if the stem is not one of these names."""
        ...

    def heights(self, modules: Sequence[str], width: int) -> list[int]:
        """Output features of every module of a fused linear that takes ``width``."""
        ...

    def halves_swapped(self, stem: str) -> bool:
        """Whether the upper and the lower half of the stem's outputs stand the other way round in diffusers' module."""
        ...


class FlatNames:
    """Diffusers' own names with ``_`` for ``.``."""

    def published(self, module: str) -> tuple[str, int]:
        """See `KohyaNames.published`; every module has a place."""
        return module.replace(".", "_"), 0

    def modules(self, stem: str, dotted: Dotted) -> tuple[str, ...] | None:
        """See `KohyaNames.modules`; None where no module is known by this name."""
        name = dotted(stem)
        return None if name is None else (name,)

    def heights(self, modules: Sequence[str], width: int) -> list[int]:
        """See `KohyaNames.heights`; nothing is fused."""
        return [width] * len(modules)

    def halves_swapped(self, stem: str) -> bool:
        """See `KohyaNames.halves_swapped`; never."""
        return False


FLAT = FlatNames()
