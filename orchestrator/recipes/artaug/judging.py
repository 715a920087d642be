"""What the independent judge says of the pictures: the last stage, after everything is decided; only the report reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from orchestrator.recipes.artaug.state import Plan, Sample, State
from sfumato.runtime.tasks import Manifest, Task

MOST = 1024
"""Held-out pictures of a model that are judged, the first ones: all of them go into one message."""


def ask(plan: Plan, state: State) -> list[Task]:
    """One task over the held-out pictures of every model, and the pairs in which the VLM looked again; none where there is no judge."""
    judge = plan.models.get("judge")
    if judge is None:
        return []
    sets = {"base": state.base, "ceiling": state.ceiling}
    sets |= {f"iteration {iteration.index}": iteration.trial.heldout for iteration in state.fused if iteration.trial}
    sets |= {"naive": state.naive.heldout if state.naive else None}
    items = tuple({"set": name, "pictures": list(heldout.pictures[:MOST])} for name, heldout in sets.items() if heldout is not None)
    params = {"prompts": list(plan.prompts.heldout[:MOST]), "pairs": _pairs(state.looked)}
    return [Task(stage="judge", kind="scoring.judge", items=items, params=params, model=judge.version, model_reference=judge.reference)]


def absorb(_: Plan, state: State, done: list[Manifest]) -> State:
    """Note its words."""
    return replace(state, judged=done[0].values) if done else state


def _pairs(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [
        {
            "before": sample.before.picture,
            "after": sample.after.picture,
            "regions": [asdict(region) for region in sample.regions],
            "regions_after": [asdict(region) for region in sample.regions_after],
        }
        for sample in samples
        if sample.before and sample.after
    ]
