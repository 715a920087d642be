"""The page a run ends in: one self-contained HTML file, and report.json with the same numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.recipes.artaug import Plan, State
from orchestrator.report.page import render
from orchestrator.summary import Marks, summarise
from sfumato.runtime.artifacts import ArtifactStore

__all__ = ["write_report"]


def write_report(
    plan: Plan, state: State, artifacts: ArtifactStore, judged: Marks | None, seconds: Mapping[int, float], folder: Path
) -> Path:
    """Write ``report.json`` and ``report.html`` (last, so that a page that exists is whole); the page's path.

    Args:
        plan: what was asked for.
        state: the finished run.
        artifacts: where its pictures are.
        judged: what the independent judge says, see `summarise`.
        seconds: wall seconds of each iteration.
        folder: the run's; it exists.
    """
    figures = summarise(plan, state, judged, seconds)
    _write(folder / "report.json", json.dumps(figures, indent=1, sort_keys=True, allow_nan=False) + "\n")
    _write(folder / "report.html", render(plan, state, artifacts, figures))
    return folder / "report.html"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
