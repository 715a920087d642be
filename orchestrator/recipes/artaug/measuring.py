"""What came of it (section 4.1): held-out prompts, painted by base and tuned model from the same seeds, and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.recipes.artaug.state import HeldOut, Plan, State
from orchestrator.recipes.artaug.tasks import chunks, paint, painted, score
from sfumato.runtime.tasks import Manifest, Task


def _asked(plan: Plan, state: State) -> list[tuple[str, Sequence[str], str]]:
    """Who paints what: ``(whose, prompts, adapter)``, the base model's only once."""
    rows: list[tuple[str, Sequence[str], str]] = []
    if state.base is None or not state.base.scores:
        rows.append(("base", plan.prompts.heldout, ""))
        if plan.prompts.ceiling:
            rows.append(("ceiling", plan.prompts.ceiling, ""))
    if state.trial is not None and state.trial.stacked:
        rows.append(("trial", plan.prompts.heldout, state.trial.stacked))
    return rows


def repaint(plan: Plan, state: State) -> list[Task]:
    """Every held-out prompt by every model that has not painted it yet."""
    seed = plan.spec.evaluate.seed
    return [
        paint(plan, "evaluate", part, adapter)
        for _, prompts, adapter in _asked(plan, state)
        for part in chunks([(prompt, seed + index, ()) for index, prompt in enumerate(prompts)], plan.spec.batch)
    ]


def absorb_repainted(plan: Plan, state: State, done: list[Manifest]) -> State:
    """Note the pictures."""
    pictures = [picture.picture for manifest in done for picture in painted(manifest)]
    rows = chunks(pictures, len(plan.prompts.heldout))
    for (whose, _, _), row in zip(_asked(plan, state), rows, strict=True):
        state = _noted(state, whose, HeldOut(tuple(row)))
    return state.made_with(done)


def rate(plan: Plan, state: State) -> list[Task]:
    """Score them against the prompts they were painted from."""
    return [
        score(plan, "measure", part, plan.spec.score.metrics)
        for _, prompts, pictures in _unrated(plan, state)
        for part in chunks(list(zip(prompts, pictures, strict=True)), plan.spec.batch)
    ]


def absorb_rated(plan: Plan, state: State, done: list[Manifest]) -> State:
    """Note the scores."""
    values = [value for manifest in done for value in manifest.values]
    rows = chunks(values, len(plan.prompts.heldout))
    for (whose, _, pictures), row in zip(_unrated(plan, state), rows, strict=True):
        state = _noted(state, whose, HeldOut(tuple(pictures), tuple(row)))
    return state.made_with(done)


def _unrated(plan: Plan, state: State) -> list[tuple[str, Sequence[str], Sequence[str]]]:
    """``(whose, prompts, pictures)`` of what is painted and not scored."""
    trial = state.trial.heldout if state.trial else None
    sets = (
        ("base", plan.prompts.heldout, state.base),
        ("ceiling", plan.prompts.ceiling, state.ceiling),
        ("trial", plan.prompts.heldout, trial),
    )
    return [(whose, prompts, heldout.pictures) for whose, prompts, heldout in sets if heldout is not None and not heldout.scores]


def _noted(state: State, whose: str, heldout: HeldOut) -> State:
    if whose == "base":
        return replace(state, base=heldout)
    if whose == "ceiling":
        return replace(state, ceiling=heldout)
    assert state.trial is not None
    return replace(state, trial=replace(state.trial, heldout=heldout))
