"""From kept pairs to a better model (sections 3.3 and 3.4): train on each pair, average the adapters, fuse with the best alpha."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from orchestrator.engine.stages import Barrier
from orchestrator.recipes.artaug import tells
from orchestrator.recipes.artaug.judging import absorb_regrounded
from orchestrator.recipes.artaug.state import (
    DIVERGED,
    ENOUGH,
    NO_GAIN,
    ArtAugPlan,
    Candidate,
    Iteration,
    State,
    Training,
    TuningAttempt,
    fresh,
)
from orchestrator.recipes.artaug.work import Counts
from orchestrator.recipes.tasks import Painted, chunks, joint_training, paint, painted, score, stand_in, training
from orchestrator.recipes.work import Cost
from sfumato.runtime.tasks import Manifest, Task


def nothing(_: ArtAugPlan, __: State) -> list[Task]:
    """No tasks: the barrier only decides."""
    return []


# --- train: phi_1 and phi_2 of every kept pair (A3, section 3.3) ---


def train(plan: ArtAugPlan, state: State) -> list[Task]:
    """A task for each group of pairs, in which every pair has its own adapter; or one task that trains one adapter on all pairs."""
    attempt = state.attempt
    if attempt is None:
        return []
    if attempt.objective == "joint":
        return [_joint(plan, attempt)]
    params = plan.spec.train.model_dump(exclude={"together", "pairs"}) | plan.spec.paint.model_dump(include={"guidance", "width", "height"})
    params |= {"adapter": attempt.base, "objective": attempt.objective}
    items = [
        {"prompt": sample.prompt, "seed": sample.seed, "before": _latents(sample.before), "after": _latents(sample.after)}
        for sample in attempt.pairs
    ]
    return [training(plan, "train", "train", tuple(rows), params) for rows in chunks(items, plan.spec.train.together)]


def _joint(plan: ArtAugPlan, attempt: TuningAttempt) -> Task:
    """One adapter on all X'."""
    spec = plan.spec
    params = spec.joint.model_dump() | spec.train.model_dump(include={"rank", "learning_rate"})
    params |= spec.paint.model_dump(include={"guidance", "width", "height"}) | {"adapter": attempt.base, "seed": spec.prompts.seed}
    items = tuple({"prompt": sample.prompt, "latents": _latents(sample.after)} for sample in attempt.pairs)
    return joint_training(plan, "train", items, params)


def absorb_trained(_: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Store the adapters of the pairs that did not diverge."""
    if state.attempt is None:
        return state
    adapters, trainings = [], []
    for manifest in done:
        for index, value in enumerate(manifest.values):
            details = {key: value[key] for key in value if key not in ("losses", "rank", "diverged", "set_aside")}
            lost = value.get("set_aside", False)
            trainings.append(Training(tuple(value["losses"]), value["rank"], value["diverged"], details, lost))
            if not value["diverged"]:
                adapters.append(manifest.files[f"{index}.safetensors"])
    attempt = replace(state.attempt, adapters=tuple(adapters), trainings=tuple(trainings))
    reason = state.stop_reason if adapters or attempt.compared else DIVERGED
    return replace(state, attempt=attempt, stop_reason=reason).made_with(done)


def on_dead_letter(task: Task, reason: str) -> Manifest:
    """A manifest in which the pairs of the task count as diverged."""
    value = {"losses": [], "rank": 0, "diverged": reason, "set_aside": True}
    return stand_in(task, [value] * (1 if task.service == "joint" else len(task.items)))


# --- average: the exact mean of B_i A_i (A4, section 3.4) ---


def average(plan: ArtAugPlan, state: State) -> list[Task]:
    """One task over all adapters."""
    if state.attempt is None or not state.attempt.adapters:
        return []
    return [training(plan, "average", "average", state.attempt.adapters, {"rank": plan.spec.fuse.rank})]


def absorb_averaged(_: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Store the mean, its rank, and the error of its compression."""
    if state.attempt is None or not done:
        return state
    return replace(state, attempt=replace(state.attempt, average=done[0].files["adapter.safetensors"], compression=done[0].values))


# --- stack: theta + alpha * phi (A4), once for every candidate alpha ---


def stack(plan: ArtAugPlan, state: State) -> list[Task]:
    """Earlier iterations and the new mean as one LoRA file each, loaded back and compared."""
    attempt = state.attempt
    if attempt is None or not attempt.average:
        return []
    means, alphas = [mean for mean, _ in attempt.earlier], [alpha for _, alpha in attempt.earlier]
    return [training(plan, "stack", "fuse", (*means, attempt.average), {"alphas": [*alphas, alpha]}) for alpha in plan.spec.fuse.alpha]


def absorb_stacked(plan: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Store the candidates."""
    if state.attempt is None or not done:
        return state
    alphas = plan.spec.fuse.alpha
    candidates = tuple(Candidate(alpha, m.files["adapter.safetensors"]) for alpha, m in zip(alphas, done, strict=True))
    return replace(state, attempt=replace(state.attempt, candidates=candidates))


# --- paint_tuning, choose_alpha: alpha is chosen on prompts that are neither trained on nor reported ---


def _tried(state: State) -> tuple[Candidate, ...]:
    """The base model, the model that the attempt starts from, and the candidates."""
    attempt = state.attempt
    return () if attempt is None or not attempt.candidates else (Candidate(0.0, ""), Candidate(0.0, attempt.base), *attempt.candidates)


def repaint(plan: ArtAugPlan, state: State) -> list[Task]:
    """Paint the tuning prompts with each of these models."""
    if plan.spec.tune is None:
        return []
    rows = [(prompt, plan.spec.tune.seed + index, ()) for index, prompt in enumerate(plan.inputs["tune"])]
    return [paint(plan, "paint_tuning", part, tried.stacked) for tried in _tried(state) for part in chunks(rows, plan.spec.batch)]


def absorb_repainted(plan: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Store the pictures; the base model and the current one are temporarily stored as candidates."""
    if state.attempt is None or not done:
        return state
    pictures = [picture.picture for manifest in done for picture in painted(manifest)]
    rows = chunks(pictures, len(plan.inputs["tune"]))
    tried = tuple(replace(c, pictures=tuple(row)) for c, row in zip(_tried(state), rows, strict=True))
    return replace(state, attempt=replace(state.attempt, candidates=tried))


def rate(plan: ArtAugPlan, state: State) -> list[Task]:
    """Compute the aesthetic and CLIP scores of all pictures."""
    if plan.spec.tune is None or state.attempt is None:
        return []
    return [
        score(plan, "choose_alpha", part, ("aesthetic", "clip"))
        for candidate in state.attempt.candidates
        for part in chunks(list(zip(plan.inputs["tune"], candidate.pictures, strict=True)), plan.spec.batch)
    ]


def choose_alpha(plan: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Choose the candidate with the highest aesthetic score among those that lose at most ``clip_loss`` of the base model's CLIP score.

    The comparison needs an alpha even if none qualifies: then it is the one with the highest CLIP score.
    """
    attempt = state.attempt
    if attempt is None or not attempt.candidates:
        return state
    if plan.spec.tune is None:
        return replace(state, attempt=_chosen(attempt, attempt.candidates[0]))
    values = chunks([value for manifest in done for value in manifest.values], len(plan.inputs["tune"]))
    base, standing, *candidates = (
        replace(c, aesthetic=_mean([row["aesthetic"] for row in rows]), clip=_mean([row["clip"] for row in rows]))
        for c, rows in zip(attempt.candidates, values, strict=True)
    )
    attempt = replace(attempt, candidates=tuple(candidates), standing=standing)
    agreeing = [c for c in candidates if c.clip >= base.clip - plan.spec.fuse.clip_loss]
    best = max(agreeing, key=lambda c: c.aesthetic, default=None)
    if attempt.compared:
        return replace(state, attempt=_chosen(attempt, best or max(candidates, key=lambda c: c.clip)))
    if best is None or best.aesthetic <= standing.aesthetic:
        return replace(state, attempt=attempt, stop_reason=NO_GAIN)
    return replace(state, attempt=_chosen(attempt, best))


def _chosen(attempt: TuningAttempt, candidate: Candidate) -> TuningAttempt:
    return replace(attempt, alpha=candidate.alpha, stacked=candidate.stacked)


# --- conclude: the iteration's own LoRA, and the next iteration ---


def product(plan: ArtAugPlan, state: State) -> list[Task]:
    """The iteration alone as a LoRA file that includes alpha."""
    attempt = state.attempt
    if attempt is None or not attempt.alpha:
        return []
    return [training(plan, "conclude", "fuse", (attempt.average,), {"alphas": [attempt.alpha]})]


def conclude(plan: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Append the iteration to the state; start the next with the same prompts and seeds, unless it was the last."""
    attempt = state.attempt
    if attempt is not None and done:
        attempt = replace(attempt, lora=done[0].files["adapter.safetensors"])
    iterations = (*state.iterations, Iteration(len(state.iterations) + 1, state.samples, attempt))
    reason = state.stop_reason or (ENOUGH if len(iterations) == plan.spec.stop.max_iterations else "")
    return replace(state, samples=fresh(plan), attempt=None, iterations=iterations, stop_reason=reason)


# --- naive: the same pairs of the first iteration, trained on X' alone, one adapter per pair or one for all (section 4.3.2) ---


def begin_naive(plan: ArtAugPlan, state: State, _: list[Manifest]) -> State:
    """A second attempt on the first iteration's pairs."""
    first = state.fused[0].attempt if state.fused else None
    if first is None or not plan.spec.compare:
        return replace(state, attempt=None)
    return replace(state, attempt=TuningAttempt("joint" if plan.spec.compare == "joint" else "naive", first.pairs, "", ()))


def compared(stages: Sequence[Barrier]) -> tuple[Barrier, ...]:
    """The tuning stages of an iteration for the comparison: the same tasks with different costs."""

    def cost(stage: Barrier) -> Callable[[Counts], Cost | None]:
        if stage.name == "train":
            return Counts.naive_train
        return lambda counts: counts.compared(stage.work(counts)) if stage.work is not None else None

    return tuple(replace(stage, tells=tells.compared(stage.tells), work=cost(stage)) for stage in stages)


def conclude_naive(_: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Store the comparison."""
    return replace(absorb_regrounded(state, done), naive=state.attempt, attempt=None)


def _latents(picture: Painted | None) -> str:
    assert picture is not None, "a stage ran before the one it needs"
    return picture.latents


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
