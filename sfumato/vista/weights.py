"""Where the shipped Vista models lie, and whether their files are whole; they are declared in `sfumato.runtime.models.builtin`."""

from __future__ import annotations

from pathlib import Path

from sfumato.runtime.models.builtin import BUILT_IN
from sfumato.runtime.models.builtin import MANIFEST as MANIFEST
from sfumato.runtime.models.builtin import seal as seal

PARTS = BUILT_IN["vista"].parts
ROOT = BUILT_IN["vista"].root


def locate(part: str, root: Path = ROOT) -> Path:
    """The folder of one part, checked. Raises: as `sfumato.runtime.models.builtin.BuiltInModels.locate`."""
    return BUILT_IN["vista"].locate(part, root)
