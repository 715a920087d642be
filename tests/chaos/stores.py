"""What an artifact store holds, as values that can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Manifest


def contents(folder: Path) -> dict[str, str]:
    """What a store holds of tasks: its blobs and manifests, without what belongs to a run or is of passing use."""
    store = ArtifactStore(str(folder))
    blobs = {key: "" for key in store.keys("blobs/")}
    return blobs | {key: _portable(store.read_key(key) or b"") for key in store.keys("manifests/")}


def files_of_run(store: Path, run: str) -> set[tuple[str, str]]:
    """Names and digests of a finished run's files."""
    outcome: dict[str, Any] = json.loads((store / "runs" / run / "outcome.json").read_text())
    return set(outcome["files"].items())


def results(folder: Path) -> dict[str, bytes]:
    """The adapters and the report in the folder of a finished run."""
    return {
        path.name: path.read_bytes() for path in folder.glob("*") if path.suffix in (".safetensors", ".html") or path.name == "report.json"
    }


def _portable(manifest: bytes) -> str:
    return Manifest.model_validate_json(manifest).model_dump_json()
