"""Where a metric's weights lie: in the package (Vista's), in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from sfumato.errors import BrokenWeights
from sfumato.runtime.models.builtin import BUILT_IN, MANIFEST
from sfumato.runtime.models.hub import located
from sfumato.runtime.models.references import VISTA

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of weights: its path, its version, and what to do if its files cannot be read."""

    folder: Path
    version: str
    remedy: str

    def read(self, read: Callable[[], _Part]) -> _Part:
        """Call ``read`` and translate its errors.

        Raises:
            BrokenWeights: a file is absent, damaged, or of another model.
        """
        try:
            return read()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise BrokenWeights(f"the scorer's files in {self.folder} cannot be read ({reason}).", hint=self.remedy) from error


def shipped(metric: str, root: Path) -> Source:
    """Vista's weights of a metric; their checksums were verified.

    Raises:
        MissingWeights, BrokenWeights: files are absent or damaged.
    """
    folder = BUILT_IN[VISTA].locate(metric, root)
    return Source(folder, f"vista-{_digest([folder / MANIFEST])}", "Reinstall the package.")


def named(ref: str) -> Source:
    """The weights that a run or a call names for a metric: a folder, or a model of the hub.

    Raises:
        InvalidInput: neither a folder nor a name on the hub.
        MissingWeights: the hub does not give it, and it is not in the cache.
    """
    folder = located(ref)
    if folder != Path(ref).resolve():
        return Source(folder, f"{ref}@{folder.name[:12]}", f"Fetch it again: hf download {ref} --force-download")
    digest = _digest(path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors"))
    return Source(folder, f"{folder.name}-{digest}", "Copy the weights again, or convert them again: sfumato convert --help")


def _digest(paths: Iterable[Path]) -> str:
    """Twelve digits of the SHA-256 of these files' contents."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:12]
