"""From kept pairs to a better model (sections 3.3 and 3.4): train each, average, fuse as strongly as it does good."""

from __future__ import annotations

import math
from dataclasses import replace
from heapq import nsmallest

from orchestrator.recipes.artaug.pairs import absorb_look, verdict
from orchestrator.recipes.artaug.state import (
    DIVERGED,
    ENOUGH,
    KEPT,
    NO_GAIN,
    TOO_FEW,
    Candidate,
    Iteration,
    Painted,
    Plan,
    State,
    Training,
    Trial,
    fresh,
)
from orchestrator.recipes.artaug.tasks import chunks, joint_training, paint, painted, score, stand_in, training
from orchestrator.spool import spooled
from sfumato.runtime.tasks import Manifest, Task


def nothing(_: Plan, __: State) -> list[Task]:
    """A barrier that only decides."""
    return []


# --- filter: the verdict on every pair; the best of the kept ones are trained ---


def select(plan: Plan, state: State, _: list[Manifest]) -> State:
    """The rules' verdicts beside the reviewers'; too few pairs end the run."""
    rules = plan.spec.filter
    samples = spooled(sample if sample.verdict else replace(sample, verdict=verdict(sample, rules)) for sample in state.samples)
    state = state.with_samples(samples)
    if sum(sample.verdict == KEPT for sample in samples) < plan.spec.stop.min_pairs:
        return replace(state, stop_reason=TOO_FEW)
    kept = (sample for sample in samples if sample.verdict == KEPT)
    best = nsmallest(plan.spec.train.pairs, kept, key=lambda sample: (-sample.gain, sample.seed))
    earlier = tuple((trial.average, trial.alpha) for trial in (iteration.trial for iteration in state.fused) if trial)
    return replace(state, trial=Trial("differential", tuple(best), state.adapter, earlier))


# --- train: phi_1 and phi_2 of every kept pair (A3, section 3.3) ---


def train(plan: Plan, state: State) -> list[Task]:
    """A task for every few pairs, each pair trained as if it were alone; or one for all of them, where one adapter is to learn them."""
    trial = state.trial
    if trial is None:
        return []
    if trial.objective == "joint":
        return [_joint(plan, trial)]
    params = plan.spec.train.model_dump(exclude={"together", "pairs"}) | plan.spec.paint.model_dump(include={"guidance", "width", "height"})
    params |= {"adapter": trial.base, "objective": trial.objective}
    items = [
        {"prompt": sample.prompt, "seed": sample.seed, "before": _latents(sample.before), "after": _latents(sample.after)}
        for sample in trial.pairs
    ]
    return [training(plan, "train", "train", tuple(rows), params) for rows in chunks(items, plan.spec.train.together)]


def _joint(plan: Plan, trial: Trial) -> Task:
    """All X' together, for one adapter."""
    spec = plan.spec
    params = spec.joint.model_dump() | spec.train.model_dump(include={"rank", "learning_rate"})
    params |= spec.paint.model_dump(include={"guidance", "width", "height"}) | {"adapter": trial.base, "seed": spec.prompts.seed}
    items = tuple({"prompt": sample.prompt, "latents": _latents(sample.after)} for sample in trial.pairs)
    return joint_training(plan, "train", items, params)


def absorb_trained(_: Plan, state: State, done: list[Manifest]) -> State:
    """Note the adapters of the pairs that did not diverge."""
    if state.trial is None:
        return state
    adapters, trainings = [], []
    for manifest in done:
        for index, value in enumerate(manifest.values):
            details = {key: value[key] for key in value if key not in ("losses", "rank", "diverged", "set_aside")}
            lost = value.get("set_aside", False)
            trainings.append(Training(tuple(value["losses"]), value["rank"], value["diverged"], details, lost))
            if not value["diverged"]:
                adapters.append(manifest.files[f"{index}.safetensors"])
    trial = replace(state.trial, adapters=tuple(adapters), trainings=tuple(trainings))
    reason = state.stop_reason if adapters or trial.compared else DIVERGED
    return replace(state, trial=trial, stop_reason=reason).made_with(done)


def without(task: Task, reason: str) -> Manifest:
    """Pairs that nobody could train count as diverged."""
    value = {"losses": [], "rank": 0, "diverged": reason, "set_aside": True}
    return stand_in(task, [value] * (1 if task.service == "joint" else len(task.items)))


# --- average: the exact mean of B_i A_i (A4, section 3.4) ---


def average(plan: Plan, state: State) -> list[Task]:
    """One task over all adapters."""
    if state.trial is None or not state.trial.adapters:
        return []
    return [training(plan, "average", "average", state.trial.adapters, {"rank": plan.spec.fuse.rank})]


def absorb_averaged(_: Plan, state: State, done: list[Manifest]) -> State:
    """Note the mean, its rank, and what compressing it lost."""
    if state.trial is None or not done:
        return state
    return replace(state, trial=replace(state.trial, average=done[0].files["adapter.safetensors"], compression=done[0].values))


# --- fuse: theta + alpha * phi (A4), once for every alpha that is tried ---


def fuse(plan: Plan, state: State) -> list[Task]:
    """Earlier iterations and the new mean as one LoRA file each, loaded back and compared."""
    trial = state.trial
    if trial is None or not trial.average:
        return []
    means, alphas = [mean for mean, _ in trial.earlier], [alpha for _, alpha in trial.earlier]
    return [training(plan, "fuse", "fuse", (*means, trial.average), {"alphas": [*alphas, alpha]}) for alpha in plan.spec.fuse.alpha]


def absorb_fused(plan: Plan, state: State, done: list[Manifest]) -> State:
    """Note the candidates."""
    if state.trial is None or not done:
        return state
    alphas = plan.spec.fuse.alpha
    candidates = tuple(Candidate(alpha, m.files["adapter.safetensors"]) for alpha, m in zip(alphas, done, strict=True))
    return replace(state, trial=replace(state.trial, candidates=candidates))


# --- tune: which alpha, on prompts that are neither trained on nor reported ---


def _tried(state: State) -> tuple[Candidate, ...]:
    """The base model, the model the trial stands on, and the candidates."""
    trial = state.trial
    return () if trial is None or not trial.candidates else (Candidate(0.0, ""), Candidate(0.0, trial.base), *trial.candidates)


def repaint(plan: Plan, state: State) -> list[Task]:
    """Paint the tuning prompts with each of them."""
    if plan.spec.tune is None:
        return []
    rows = [(prompt, plan.spec.tune.seed + index, ()) for index, prompt in enumerate(plan.prompts.tune)]
    return [paint(plan, "tune", part, tried.stacked) for tried in _tried(state) for part in chunks(rows, plan.spec.batch)]


def absorb_repainted(plan: Plan, state: State, done: list[Manifest]) -> State:
    """Note the pictures; those of the base model and of the standing one ride along with the candidates."""
    if state.trial is None or not done:
        return state
    pictures = [picture.picture for manifest in done for picture in painted(manifest)]
    rows = chunks(pictures, len(plan.prompts.tune))
    tried = tuple(replace(c, pictures=tuple(row)) for c, row in zip(_tried(state), rows, strict=True))
    return replace(state, trial=replace(state.trial, candidates=tried))


def rate(plan: Plan, state: State) -> list[Task]:
    """Aesthetic and CLIP score of all of them."""
    if plan.spec.tune is None or state.trial is None:
        return []
    return [
        score(plan, "choose", part, ("aesthetic", "clip"))
        for candidate in state.trial.candidates
        for part in chunks(list(zip(plan.prompts.tune, candidate.pictures, strict=True)), plan.spec.batch)
    ]


def choose(plan: Plan, state: State, done: list[Manifest]) -> State:
    """The most beautiful of those that lose no more than ``clip_loss`` of the base model's agreement with the prompts.

    The comparison needs some alpha even where none is good: then it is the one that agrees best.
    """
    trial = state.trial
    if trial is None or not trial.candidates:
        return state
    if plan.spec.tune is None:
        return replace(state, trial=_chosen(trial, trial.candidates[0]))
    values = chunks([value for manifest in done for value in manifest.values], len(plan.prompts.tune))
    base, standing, *candidates = (
        replace(c, aesthetic=_mean([row["aesthetic"] for row in rows]), clip=_mean([row["clip"] for row in rows]))
        for c, rows in zip(trial.candidates, values, strict=True)
    )
    trial = replace(trial, candidates=tuple(candidates), standing=standing)
    agreeing = [c for c in candidates if c.clip >= base.clip - plan.spec.fuse.clip_loss]
    best = max(agreeing, key=lambda c: c.aesthetic, default=None)
    if trial.compared:
        return replace(state, trial=_chosen(trial, best or max(candidates, key=lambda c: c.clip)))
    if best is None or best.aesthetic <= standing.aesthetic:
        return replace(state, trial=trial, stop_reason=NO_GAIN)
    return replace(state, trial=_chosen(trial, best))


def _chosen(trial: Trial, candidate: Candidate) -> Trial:
    return replace(trial, alpha=candidate.alpha, stacked=candidate.stacked)


# --- finish: this iteration's own LoRA, and on to the next ---


def product(plan: Plan, state: State) -> list[Task]:
    """The iteration alone as a LoRA file, alpha in it."""
    trial = state.trial
    if trial is None or not trial.alpha:
        return []
    return [training(plan, "finish", "fuse", (trial.average,), {"alphas": [trial.alpha]})]


def conclude(plan: Plan, state: State, done: list[Manifest]) -> State:
    """Put the iteration away; begin the next with the same prompts and seeds, unless this was the last."""
    trial = state.trial
    if trial is not None and done:
        trial = replace(trial, lora=done[0].files["adapter.safetensors"])
    iterations = (*state.iterations, Iteration(len(state.iterations) + 1, state.samples, trial))
    reason = state.stop_reason or (ENOUGH if len(iterations) == plan.spec.stop.max_iterations else "")
    return replace(state, samples=fresh(plan), trial=None, iterations=iterations, stop_reason=reason)


# --- naive: the same pairs of the first iteration, trained on X' alone, each by itself or all together (section 4.3.2) ---


def begin_naive(plan: Plan, state: State, _: list[Manifest]) -> State:
    """A second trial on the first iteration's pairs."""
    first = state.fused[0].trial if state.fused else None
    if first is None or not plan.spec.compare:
        return replace(state, trial=None)
    return replace(state, trial=Trial("joint" if plan.spec.compare == "joint" else "naive", first.pairs, "", ()))


def conclude_naive(_: Plan, state: State, done: list[Manifest]) -> State:
    """Put the comparison away."""
    return replace(absorb_look(state, done), naive=state.trial, trial=None)


def _latents(picture: Painted | None) -> str:
    assert picture is not None, "a stage ran before the one it needs"
    return picture.latents


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
