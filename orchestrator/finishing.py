"""What a run leaves: its files, the same bytes whichever way its tasks were done and however often it was broken off."""

from __future__ import annotations

from orchestrator.recipes.artaug import Plan, State
from orchestrator.report import report_files
from sfumato.runtime.artifacts import ArtifactStore


def finish(plan: Plan, state: State, artifacts: ArtifactStore) -> dict[str, bytes]:
    """Every file of a finished run by its name, the page last: ``adapter-<i>.safetensors``, a LoRA an iteration that was fused, all of
    them stacked into ``adapter.safetensors``, ``report.json`` and ``report.html``.

    Raises:
        MissingWeights, BrokenWeights: something the run made is not in the store any more.
    """
    files: dict[str, bytes] = {}
    for iteration in state.fused:
        assert iteration.trial is not None
        files[f"adapter-{iteration.index}.safetensors"] = artifacts.get(iteration.trial.lora)
    if state.adapter:
        files["adapter.safetensors"] = artifacts.get(state.adapter)
    return files | report_files(plan, state, artifacts)
