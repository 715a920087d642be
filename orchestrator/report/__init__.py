"""The page a run ends in, and its numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.recipes.artaug import Plan, State
from orchestrator.summary import Marks, summarise
from sfumato.runtime.artifacts import ArtifactStore


def write_report(
    plan: Plan, state: State, artifacts: ArtifactStore, judged: Marks | None, seconds: Mapping[int, float], folder: Path
) -> Path:
    """Write ``report.json`` and ``report.html`` (last, so that a page that exists is whole); the page's path."""
    figures = summarise(plan, state, judged, seconds)
    _write(folder / "report.json", json.dumps(figures, indent=1, sort_keys=True, allow_nan=False) + "\n")
    _write(folder / "report.html", "<!doctype html><pre>" + json.dumps(figures, indent=1) + "</pre>")
    return folder / "report.html"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
