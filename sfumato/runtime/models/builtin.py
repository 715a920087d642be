"""Models that come with an installed package: declared here by name, found through the package's files when they are asked for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sfumato.errors import BrokenWeights, MissingWeights

MANIFEST = "checksums.json"


@dataclass(frozen=True, slots=True)
class BuiltInModels:
    """The models of one package: their title, the folder in the package, the parts, and the command that makes a part again."""

    title: str
    package: str
    folder: str
    parts: tuple[str, ...]
    remedy: str

    @property
    def root(self) -> Path:
        """Where the parts lie; imports the package, and nothing in it."""
        return Path(str(files(self.package))) / self.folder

    def locate(self, part: str, root: Path | None = None) -> Path:
        """The folder of one part, for that library's own ``from_pretrained``, after its files' SHA-256 were checked.

        Args:
            part: one of ``parts``.
            root: a folder with other weights of the same parts; the package's own where absent.

        Raises:
            MissingWeights: the folder, its checksum manifest or one of its files is absent.
            BrokenWeights: a file's SHA-256 is not the recorded one.
        """
        folder = (self.root if root is None else root) / part
        manifest = folder / MANIFEST
        if not manifest.is_file():
            hint = f"Reinstall the package, or train them: {self.remedy.format(part=part)}"
            raise MissingWeights(f"the {self.title} weights of {part!r} are not in {folder}.", hint=hint)
        for name, expected in json.loads(manifest.read_text()).items():
            path = folder / name
            if not path.is_file():
                raise MissingWeights(f"{path} is missing.", hint="Reinstall the package.")
            if _sha256(path) != expected:
                raise BrokenWeights(f"{path} is damaged: its SHA-256 is not the recorded one.", hint="Reinstall the package.")
        return folder


# References to built-in models. A package named here is not imported before one of its models is used.
BUILT_IN = {
    "vista": BuiltInModels(
        title="Vista",
        package="sfumato.vista",
        folder="weights",
        parts=("generator", "understanding", "clip", "aesthetic", "pickscore", "mps", "detector", "judge"),
        remedy="sfumato vista train --part {part}",
    ),
}


def seal(folder: Path) -> None:
    """Record the SHA-256 of every file below ``folder`` in its manifest."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    digests = {p.relative_to(folder).as_posix(): _sha256(p) for p in found}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
