"""What came of it (section 4.1): held-out prompts, painted by base and tuned model from the same seeds, and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.recipes.artaug.state import ArtAugPlan, HeldOutResult, State
from orchestrator.recipes.tasks import chunks, paint, painted, score
from sfumato.runtime.tasks import Manifest, Task


def _asked(plan: ArtAugPlan, state: State) -> list[tuple[str, Sequence[str], str]]:
    """Who paints what: ``(whose, prompts, adapter)``, the base model's only once."""
    rows: list[tuple[str, Sequence[str], str]] = []
    if state.base is None or not state.base.scores:
        rows.append(("base", plan.inputs["heldout"], ""))
        if plan.inputs["ceiling"]:
            rows.append(("ceiling", plan.inputs["ceiling"], ""))
    if state.attempt is not None and state.attempt.stacked:
        rows.append(("attempt", plan.inputs["heldout"], state.attempt.stacked))
    return rows


def repaint(plan: ArtAugPlan, state: State) -> list[Task]:
    """Every held-out prompt by every model that has not painted it yet."""
    seed = plan.spec.evaluate.seed
    return [
        paint(plan, "paint_heldout", part, adapter)
        for _, prompts, adapter in _asked(plan, state)
        for part in chunks([(prompt, seed + index, ()) for index, prompt in enumerate(prompts)], plan.spec.batch)
    ]


def absorb_repainted(plan: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Note the pictures."""
    pictures = [picture.picture for manifest in done for picture in painted(manifest)]
    rows = chunks(pictures, len(plan.inputs["heldout"]))
    for (whose, _, _), row in zip(_asked(plan, state), rows, strict=True):
        state = _noted(state, whose, HeldOutResult(tuple(row)))
    return state.made_with(done)


def rate(plan: ArtAugPlan, state: State) -> list[Task]:
    """Score them against the prompts they were painted from."""
    return [
        score(plan, "score_heldout", part, plan.spec.score.metrics)
        for _, prompts, pictures in _unrated(plan, state)
        for part in chunks(list(zip(prompts, pictures, strict=True)), plan.spec.batch)
    ]


def absorb_rated(plan: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Note the scores."""
    values = [value for manifest in done for value in manifest.values]
    rows = chunks(values, len(plan.inputs["heldout"]))
    for (whose, _, pictures), row in zip(_unrated(plan, state), rows, strict=True):
        state = _noted(state, whose, HeldOutResult(tuple(pictures), tuple(row)))
    return state.made_with(done)


def _unrated(plan: ArtAugPlan, state: State) -> list[tuple[str, Sequence[str], Sequence[str]]]:
    """``(whose, prompts, pictures)`` of what is painted and not scored."""
    attempt = state.attempt.heldout if state.attempt else None
    sets = (
        ("base", plan.inputs["heldout"], state.base),
        ("ceiling", plan.inputs["ceiling"], state.ceiling),
        ("attempt", plan.inputs["heldout"], attempt),
    )
    return [(whose, prompts, heldout.pictures) for whose, prompts, heldout in sets if heldout is not None and not heldout.scores]


def _noted(state: State, whose: str, heldout: HeldOutResult) -> State:
    if whose == "base":
        return replace(state, base=heldout)
    if whose == "ceiling":
        return replace(state, ceiling=heldout)
    assert state.attempt is not None
    return replace(state, attempt=replace(state.attempt, heldout=heldout))
