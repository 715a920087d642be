"""Measurements for the report only, after the last decision: the VLM's regions in X', and the judge's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from orchestrator.recipes.artaug.pairs import regions_of, there
from orchestrator.recipes.artaug.state import KEPT, ArtAugPlan, Sample, State
from orchestrator.recipes.tasks import asking, chunks
from sfumato.runtime.tasks import Manifest, Task

MOST_LOOKED = 512
"""Maximum number of pairs that are grounded again, the first ones."""


def ground_again(plan: ArtAugPlan, state: State) -> list[Task]:
    """Ground X' of the first iteration's kept pairs, as X was."""
    items = [{"prompt": sample.prompt, "picture": there(sample.after).picture} for sample in _kept_first(state)]
    strategy = plan.spec.ground.strategy
    return [asking(plan, "ground_again", "ground", tuple(rows), strategy=strategy) for rows in chunks(items, plan.spec.batch)]


def absorb_regrounded(state: State, done: list[Manifest]) -> State:
    """Store the regions in X'."""
    found = [regions_of(value) for manifest in done for value in manifest.values]
    pairs = zip(_kept_first(state), found, strict=True)
    return replace(state, looked=tuple(replace(sample, regions_after=regions) for sample, regions in pairs))


def _kept_first(state: State) -> list[Sample]:
    samples = state.iterations[0].samples if state.iterations else ()
    return list(islice((sample for sample in samples if sample.verdict == KEPT), MOST_LOOKED))


# --- judge: after the last decision ---

MOST = 1024
"""Maximum number of held-out pictures of a model that are judged, the first ones: they are one message."""


def judge(plan: ArtAugPlan, state: State) -> list[Task]:
    """One task over the held-out pictures of every model and the pairs that were grounded again; none without a judge."""
    model = plan.models.get("judge")
    if model is None:
        return []
    sets = {"base": state.base, "ceiling": state.ceiling}
    sets |= {f"iteration {iteration.index}": iteration.attempt.heldout for iteration in state.fused if iteration.attempt}
    sets |= {"naive": state.naive.heldout if state.naive else None}
    items = tuple({"set": name, "pictures": list(heldout.pictures[:MOST])} for name, heldout in sets.items() if heldout is not None)
    params = {"prompts": list(plan.inputs["heldout"][:MOST]), "pairs": _pairs(state.looked)}
    return [Task(stage="judge", kind="scoring.judge", items=items, params=params, model=model.version, model_reference=model.reference)]


def absorb_judged(_: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Store the judge's means."""
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
