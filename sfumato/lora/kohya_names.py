"""The names that modules have in kohya's layout. Names only: this module can be imported without PyTorch.

A file of that layout has ``lora_unet_<stem>``; a stem is a published linear, in which one or more of diffusers' modules stand one below
the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

NO_PLACE = "Export it as diffusers, which ComfyUI reads too."

# Names of modules that hold an underscore of their own, and those that do not: what a flattened name may consist of.
_WITH_UNDERSCORE = [
    "single_transformer_blocks", "transformer_blocks", "down_blocks", "up_blocks", "mid_block", "to_q", "to_k", "to_v", "to_out",
    "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj", "ff_context", "norm1_context", "proj_in", "proj_out", "proj_mlp",
    "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2",
]  # fmt: skip
_PLAIN = ["attn", "attn1", "attn2", "ff", "net", "proj", "linear", "norm", "norm1", "attentions", "resnets"]
_TOKEN = re.compile(rf"({'|'.join(sorted(_WITH_UNDERSCORE, key=len, reverse=True))})(?=_|$)|[^_]+")


class KohyaNames(Protocol):
    """The published names of one family's modules."""

    @property
    def one_rank(self) -> bool:
        """Whether all modules must be written with one rank."""
        ...

    def published(self, module: str) -> tuple[str, int]:
        """The stem of one of diffusers' modules, and its place among the modules that stand in it.

        Raises:
            InvalidInput: the module has no place in this layout.
        """
        ...

    def modules(self, stem: str) -> tuple[str, ...] | None:
        """Diffusers' modules that stand in a stem, in order; None if the stem is not one of these names."""
        ...

    def heights(self, modules: Sequence[str], width: int) -> list[int]:
        """Output features of every module of a fused linear that takes ``width``."""
        ...


class FlatNames:
    """Diffusers' own names with ``_`` for ``.``."""

    # One rank and so one alpha for all: diffusers finds a U-Net's single alphas by other names than it gives them.
    one_rank = True

    def published(self, module: str) -> tuple[str, int]:
        """See `KohyaNames.published`; every module has a place."""
        return module.replace(".", "_"), 0

    def modules(self, stem: str) -> tuple[str, ...] | None:
        """See `KohyaNames.modules`; None where a part of the name is not known."""
        tokens = [match[0] for match in _TOKEN.finditer(stem)]
        if not all(token in _WITH_UNDERSCORE or token in _PLAIN or token.isdecimal() for token in tokens):
            return None
        return (".".join(tokens),)

    def heights(self, modules: Sequence[str], width: int) -> list[int]:
        """See `KohyaNames.heights`; nothing is fused."""
        return [width] * len(modules)


FLAT = FlatNames()
