"""The report of a run: one self-contained HTML file, and report.json with the same numbers."""

from __future__ import annotations

import json

from orchestrator.recipes.artaug.report.page import render
from orchestrator.recipes.artaug.state import ArtAugPlan, State
from orchestrator.recipes.artaug.summary import summarise
from sfumato.runtime.artifacts import ArtifactStore

__all__ = ["report_files"]


def report_files(plan: ArtAugPlan, state: State, artifacts: ArtifactStore) -> dict[str, bytes]:
    """``report.json`` and ``report.html`` of a finished run, with pictures from the store. The bytes are reproducible."""
    figures = summarise(plan, state)
    numbers = json.dumps(figures, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return {"report.json": numbers.encode(), "report.html": render(plan, state, artifacts, figures).encode()}
