"""Evaluation (section 4.1): held-out prompts are painted by the base and the tuned model from the same seeds, and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.recipes.artaug.state import ArtAugPlan, HeldOutResult, State
from orchestrator.recipes.tasks import chunks, paint, painted, score
from sfumato.runtime.tasks import Manifest, Task


def _to_paint(plan: ArtAugPlan, state: State) -> list[tuple[str, Sequence[str], str]]:
    """The sets of pictures to paint: ``(name, prompts, adapter)``; those of the base model only once."""
    rows: list[tuple[str, Sequence[str], str]] = []
    if state.base is None or not state.base.scores:
        rows.append(("base", plan.inputs["heldout"], ""))
        if plan.inputs["ceiling"]:
            rows.append(("ceiling", plan.inputs["ceiling"], ""))
    if state.attempt is not None and state.attempt.stacked:
        rows.append(("attempt", plan.inputs["heldout"], state.attempt.stacked))
    return rows


def repaint(plan: ArtAugPlan, state: State) -> list[Task]:
    """Paint every held-out prompt with every model that has not painted it yet."""
    seed = plan.spec.evaluate.seed
    return [
        paint(plan, "paint_heldout", part, adapter)
        for _, prompts, adapter in _to_paint(plan, state)
        for part in chunks([(prompt, seed + index, ()) for index, prompt in enumerate(prompts)], plan.spec.batch)
    ]


def absorb_repainted(plan: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Store the pictures."""
    pictures = [picture.picture for manifest in done for picture in painted(manifest)]
    rows = chunks(pictures, len(plan.inputs["heldout"]))
    for (name, _, _), row in zip(_to_paint(plan, state), rows, strict=True):
        state = _with_result(state, name, HeldOutResult(tuple(row)))
    return state.made_with(done)


def rate(plan: ArtAugPlan, state: State) -> list[Task]:
    """Score the pictures with the prompts that they were painted from."""
    return [
        score(plan, "score_heldout", part, plan.spec.score.metrics)
        for _, prompts, pictures in _unrated(plan, state)
        for part in chunks(list(zip(prompts, pictures, strict=True)), plan.spec.batch)
    ]


def absorb_rated(plan: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Store the scores."""
    values = [value for manifest in done for value in manifest.values]
    rows = chunks(values, len(plan.inputs["heldout"]))
    for (name, _, pictures), row in zip(_unrated(plan, state), rows, strict=True):
        state = _with_result(state, name, HeldOutResult(tuple(pictures), tuple(row)))
    return state.made_with(done)


def _unrated(plan: ArtAugPlan, state: State) -> list[tuple[str, Sequence[str], Sequence[str]]]:
    """``(name, prompts, pictures)`` of the sets that are painted and not scored."""
    attempt = state.attempt.heldout if state.attempt else None
    sets = (
        ("base", plan.inputs["heldout"], state.base),
        ("ceiling", plan.inputs["ceiling"], state.ceiling),
        ("attempt", plan.inputs["heldout"], attempt),
    )
    return [(name, prompts, heldout.pictures) for name, prompts, heldout in sets if heldout is not None and not heldout.scores]


def _with_result(state: State, name: str, heldout: HeldOutResult) -> State:
    if name == "base":
        return replace(state, base=heldout)
    if name == "ceiling":
        return replace(state, ceiling=heldout)
    assert state.attempt is not None
    return replace(state, attempt=replace(state.attempt, heldout=heldout))
