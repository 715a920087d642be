"""Lets torchvision's CUDA wheel be imported beside a CPU build of torch.

On machines where no CPU wheel of torchvision is to be had, ``import torchvision`` fails because its compiled operators do
not load. Nothing here uses them, but transformers imports torchvision for its image processors. Their schemas are declared
just before torchvision is first imported; with a matching wheel nothing is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []


class _BeforeTorchvision(MetaPathFinder):
    """Declares the operators when torchvision is about to be imported, then leaves the import to the others."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare()
        return None


def install() -> None:
    """Watch for the first import of torchvision (costs nothing until then)."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


def _declare() -> None:
    import torch

    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _declared.append(library)
