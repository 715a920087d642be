"""The files of a finished run. Their bytes do not depend on the transport or on interruptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.recipes.artaug.report import report_files
from orchestrator.recipes.artaug.state import ArtAugPlan, State
from sfumato.runtime.artifacts import ArtifactStore


def files(plan: ArtAugPlan, state: State, artifacts: ArtifactStore) -> dict[str, bytes]:
    """Every file of a finished run by its name, the page last: ``adapter-<i>.safetensors``, a LoRA of each fused iteration, all of
    them stacked in ``adapter.safetensors``, ``report.json`` and ``report.html``.

    Raises:
        MissingWeights, BrokenWeights: a file of the run is no longer in the store, or is damaged.
    """
    found: dict[str, bytes] = {}
    for iteration in state.fused:
        assert iteration.attempt is not None
        found[f"adapter-{iteration.index}.safetensors"] = artifacts.get(iteration.attempt.lora)
    if state.adapter:
        found["adapter.safetensors"] = artifacts.get(state.adapter)
    return found | report_files(plan, state, artifacts)


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The main results of a finished run for scripts, from its ``report.json``."""
    return {"iterations": len(figures["iterations"])} | {key: figures[key] for key in ("stop_reason", "evaluation", "comparison")}
