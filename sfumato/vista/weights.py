"""Where the shipped Vista models lie, and whether their files are whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sfumato.errors import BrokenWeights, MissingWeights

ROOT = Path(__file__).parent / "weights"
PARTS = ("generator", "understanding", "clip", "aesthetic", "pickscore", "mps", "detector", "judge")
MANIFEST = "checksums.json"


def locate(part: str, root: Path = ROOT) -> Path:
    """The folder of one part, for that library's own ``from_pretrained``, after its files' SHA-256 were checked.

    Raises:
        MissingWeights: the folder, its checksum manifest or one of its files is absent.
        BrokenWeights: a file's SHA-256 is not the recorded one.
    """
    folder = root / part
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise MissingWeights(
            f"the Vista weights of {part!r} are not in {folder}.",
            hint=f"Reinstall the package, or train them: sfumato vista train --part {part}",
        )
    for name, expected in json.loads(manifest.read_text()).items():
        path = folder / name
        if not path.is_file():
            raise MissingWeights(f"{path} is missing.", hint="Reinstall the package.")
        if _sha256(path) != expected:
            raise BrokenWeights(f"{path} is damaged: its SHA-256 is not the recorded one.", hint="Reinstall the package.")
    return folder


def seal(folder: Path) -> None:
    """Record the SHA-256 of every file below ``folder`` in its manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    digests = {p.relative_to(folder).as_posix(): _sha256(p) for p in files}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
