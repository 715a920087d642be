"""The files of a finished run: the same bytes whichever way its tasks were done and however often it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.recipes.artaug.report import report_files
from orchestrator.recipes.artaug.state import ArtAugPlan, State
from sfumato.runtime.artifacts import ArtifactStore


def files(plan: ArtAugPlan, state: State, artifacts: ArtifactStore) -> dict[str, bytes]:
    """Every file of a finished run by its name, the page last: ``adapter-<i>.safetensors``, a LoRA an iteration that was fused, all of
    them stacked into ``adapter.safetensors``, ``report.json`` and ``report.html``.

    Raises:
        MissingWeights, BrokenWeights: something the run made is not in the store any more.
    """
    found: dict[str, bytes] = {}
    for iteration in state.fused:
        assert iteration.attempt is not None
        found[f"adapter-{iteration.index}.safetensors"] = artifacts.get(iteration.attempt.lora)
    if state.adapter:
        found["adapter.safetensors"] = artifacts.get(state.adapter)
    return found | report_files(plan, state, artifacts)


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What a script is told of a finished run, from its ``report.json``."""
    return {"iterations": len(figures["iterations"])} | {key: figures[key] for key in ("stop_reason", "evaluation", "comparison")}
