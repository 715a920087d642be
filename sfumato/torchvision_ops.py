"""Lets torchvision's CUDA wheel be imported beside a CPU build of torch.

Where a package index has no CPU wheel of torchvision, ``import torchvision`` fails because its compiled operators do not load:
``operator torchvision::nms does not exist``. Nothing here calls them, but transformers and diffusers import torchvision for
their image processors. Their schemas are declared just before torchvision is first imported; where the operators load, nothing
is changed.

`install_for_all`, which ``make setup`` calls, does the same for every program of the environment, whether it imports sfumato or
not: Python reads ``.pth`` files when it starts, and this one costs microseconds until torchvision is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
PTH = "sfumato_torchvision_ops.pth"
"""The file in site-packages, and its only line."""
LINE = (
    'import sys; sys.meta_path.insert(0, type("BeforeTorchvision", (), {"find_spec": staticmethod(lambda name, path=None, target=None: '
    '__import__("sfumato.torchvision_ops", fromlist=["declare"]).declare() if name == "torchvision" else None)}))\n'
)
_declared: list[object] = []


class _BeforeTorchvision:
    """An import finder that declares the operators when torchvision is about to be imported, and finds nothing."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if fullname == "torchvision":
            declare()


def install() -> None:
    """Watch for the first import of torchvision in this process."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())  # pyright: ignore[reportArgumentType] - a finder needs find_spec alone


def declare() -> None:
    """Declare the operators' schemas, once, where torch is a CPU build and torchvision's compiled operators do not load."""
    import torch

    if _declared or torch.version.cuda is not None or _operators_load():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)


def _operators_load() -> bool:
    """Try torchvision's ``_C`` as torchvision itself does; the wheel for another build of torch lacks libraries or symbols."""
    from importlib.machinery import PathFinder

    import torch

    package = PathFinder.find_spec("torchvision")
    for folder in package.submodule_search_locations or () if package else ():
        if extension := next(Path(folder).glob("_C*.so"), None):
            try:
                torch.ops.load_library(str(extension))
            except OSError:
                return False
            return True
    return False


def install_for_all() -> Path:
    """Write the ``.pth`` file into the environment's site-packages; its path."""
    import sysconfig

    path = Path(sysconfig.get_path("purelib")) / PTH
    path.write_text(LINE, encoding="utf-8")
    return path
