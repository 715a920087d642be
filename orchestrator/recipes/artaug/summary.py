"""The numbers of a finished ArtAug run: pure functions from its state to the content of report.json.

Every number is finite or None. They only depend on the plan and on the manifests: two runs of one spec have the same numbers,
regardless of workers and interruptions.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from orchestrator.recipes.artaug.spec import ArtAugSpec
from orchestrator.recipes.artaug.state import (
    KEPT,
    RULES,
    ArtAugPlan,
    HeldOutResult,
    Iteration,
    Sample,
    Scores,
    State,
    TuningAttempt,
    dead_lettered,
)
from sfumato.runs.records import DeadLettered
from sfumato.scoring.preference import win_probability

Number = float | None

# Metrics whose scores are logits of a preference: reported as the mean pairwise probability in %, as in the paper's tables.
PREFERENCES = ("pickscore", "mps")
FINISH = ("finish", "finish_objects", "finish_sky")


def summarise(plan: ArtAugPlan, state: State) -> dict[str, Any]:
    """All numbers of the report of a plan and its finished run."""
    spec = plan.spec
    marks = {name: {key: finite(value) for key, value in row.items()} for name, row in (state.judged or {}).items()}
    return {
        "name": spec.name,
        "recipe": spec.recipe,
        "stop_reason": state.stop_reason,
        "set_aside": [_lost(lost) for lost in dead_lettered(state)],
        "iterations": [_iteration(iteration, spec, state.base) for iteration in state.iterations],
        "evaluation": _evaluation(spec, state, marks),
        "comparison": _comparison(spec, state, marks),
        "judge": None if state.judged is None else marks,
        "versions": {
            "libraries": {library: " and ".join(versions) for library, versions in state.versions.items()},
            "models": {name: model.version for name, model in plan.models.items()},
        },
        "seeds": {"prompts": spec.prompts.seed, "tune": spec.tune.seed if spec.tune else None, "evaluate": spec.evaluate.seed},
        "spec": _portable(spec),
    }


def _lost(lost: DeadLettered) -> dict[str, Any]:
    """The losses of an iteration (0: the comparison) to dead letters, with the reason."""
    counts = {"samples": lost.lost.get("samples", 0), "pairs": lost.lost.get("trainings", 0)}
    return {"iteration": lost.iteration, "reason": lost.reason} | counts


def _portable(spec: ArtAugSpec) -> dict[str, Any]:
    """The spec without the folders of its prompts, so that the report does not depend on them."""
    content = spec.model_dump(mode="json")
    for part in ("prompts", "tune", "evaluate"):
        for key in ("file", "ceiling"):
            if content[part] and content[part].get(key):
                content[part][key] = PurePath(content[part][key]).name
    return content


# --- one iteration: the pairs (Figure 4), their training, the held-out results ---


def _iteration(iteration: Iteration, spec: ArtAugSpec, base: HeldOutResult | None) -> dict[str, Any]:
    samples, removed = iteration.samples, iteration.verdicts
    kept = removed.pop(KEPT)
    return {
        "index": iteration.index,
        "prompts": len(samples),
        "regions": sum(len(sample.regions) for sample in samples),
        "answers_rejected": sum(bool(sample.rejected) for sample in samples),
        "kept": kept,
        "kept_share": kept / len(samples),
        "removed_by": removed,
        **_pair_means(samples, (KEPT, *RULES)),
        "kept_pairs": _pair_means(samples, (KEPT,)),
        **_training(iteration.attempt, spec),
        "heldout": _against_base(iteration.attempt.heldout if iteration.attempt else None, base),
    }


def _pair_means(samples: Sequence[Sample], verdicts: Container[str]) -> dict[str, Number]:
    """Figure 4's means, over the samples of these verdicts that have both pictures."""

    def pairs() -> Iterator[tuple[Scores, Scores]]:
        for sample in samples:
            if sample.verdict in verdicts and sample.scores_before is not None and sample.scores_after is not None:
                yield sample.scores_before, sample.scores_after

    return {
        "aesthetic_before": mean(before["aesthetic"] for before, _ in pairs()),
        "aesthetic_after": mean(after["aesthetic"] for _, after in pairs()),
        "clip_before": mean(before["clip"] for before, _ in pairs()),
        "clip_after": mean(after["clip"] for _, after in pairs()),
        "image_cosine": mean(s.cosine for s in samples if s.verdict in verdicts and s.cosine is not None),
    }


def _training(attempt: TuningAttempt | None, spec: ArtAugSpec) -> dict[str, Any]:
    """The numbers of the training; ``alphas`` are the candidates, 0 the model that the iteration starts from."""
    if attempt is None:
        return {"trained": 0, "diverged": [], "ranks": [], "losses": [], "compression": None, "alphas": [], "alpha": None}
    good = [training for training in attempt.trainings if not training.diverged]
    tried = [candidate for candidate in (attempt.standing, *attempt.candidates) if candidate is not None]
    return {
        "trained": len(attempt.adapters),
        "diverged": [training.diverged for training in attempt.trainings if training.diverged],
        "ranks": [training.rank for training in good],
        "losses": [
            {"before": _ends(t.losses[: spec.train.steps_before]), "after": _ends(t.losses[spec.train.steps_before :])} for t in good
        ],
        "compression": {name: finite(value) for name, value in attempt.compression.items()} if attempt.compression else None,
        "alphas": [
            {"alpha": c.alpha, "aesthetic": finite(c.aesthetic) if c.pictures else None, "clip": finite(c.clip) if c.pictures else None}
            for c in tried
        ],
        "alpha": attempt.alpha or None,
    }


def _ends(losses: Sequence[float]) -> dict[str, Number]:
    """Mean loss over the first and the last tenth of the steps."""
    part = max(1, len(losses) // 10)
    return {"first": mean(losses[:part]), "last": mean(losses[-part:])}


# --- Table 1: the base model against the tuned one, on held-out prompts ---


def _evaluation(spec: ArtAugSpec, state: State, marks: Mapping[str, Mapping[str, Number]]) -> dict[str, Any]:
    last = state.fused[-1] if state.fused else None
    tuned = last.attempt.heldout if last and last.attempt else None
    wins = {metric: _share(tuned, state.base, metric) for metric in PREFERENCES}
    rows = {"base": _column(spec, state.base, marks.get("base"))}
    rows["base"] |= {metric: None if win is None else 100 - win for metric, win in wins.items()}
    rows["ceiling"] = _column(spec, state.ceiling, marks.get("ceiling"))
    judged = marks.get(f"iteration {last.index}") if last else None
    pairs = marks.get("pairs", {})
    return {
        "prompts": spec.evaluate.count,
        **rows,
        "tuned": None if tuned is None else _column(spec, tuned, judged) | wins,
        "pickscore_win": wins["pickscore"],
        "mps_win": wins["mps"],
        "wins": {m: _wins(tuned, state.base, m) for m in spec.score.metrics if m != "nudenet"},
        "finish_gain": {name: _part(marks.get("base"), judged, marks.get("ceiling"), name) for name in FINISH},
        "composition_iou": pairs.get("composition_iou"),
        "composition_iou_detector": pairs.get("composition_iou_detector"),
        "composition_matched": pairs.get("matched"),
    }


def _column(spec: ArtAugSpec, heldout: HeldOutResult | None, marks: Mapping[str, Number] | None) -> dict[str, Number]:
    """One model's means: scores as they are, NudeNet as a share in %, and the judge's means."""
    scores = {metric: _mean_of(heldout, metric) for metric in dict.fromkeys(("aesthetic", "clip", "nudenet", *spec.score.metrics))}
    scores = {metric: value for metric, value in scores.items() if metric not in PREFERENCES}
    if scores["nudenet"] is not None:
        scores["nudenet"] *= 100
    return scores | {name: (marks or {}).get(name) for name in (*FINISH, "object_presence")}


def _against_base(heldout: HeldOutResult | None, base: HeldOutResult | None) -> dict[str, Number] | None:
    """The held-out results of an iteration's model: means, and the probability that it is preferred to the base model."""
    if heldout is None:
        return None
    nudenet = _mean_of(heldout, "nudenet")
    return {
        "aesthetic": _mean_of(heldout, "aesthetic"),
        "clip": _mean_of(heldout, "clip"),
        "nudenet": None if nudenet is None else 100 * nudenet,
        **{f"{metric}_win": _share(heldout, base, metric) for metric in PREFERENCES},
    }


# --- Table 2: differential against naive training, on the first iteration's pairs ---


def _comparison(spec: ArtAugSpec, state: State, marks: Mapping[str, Mapping[str, Number]]) -> dict[str, dict[str, Any]] | None:
    first = state.fused[0] if state.fused else None
    if first is None or first.attempt is None or state.naive is None or state.naive.heldout is None:
        return None
    columns = {}
    for name, attempt, other, row in (
        ("differential", first.attempt, state.naive, marks.get(f"iteration {first.index}")),
        ("naive", state.naive, first.attempt, marks.get("naive")),
    ):
        columns[name] = _column(spec, attempt.heldout, row) | {"alpha": attempt.alpha or None, "trained": len(attempt.adapters)}
        columns[name] |= {metric: _share(attempt.heldout, other.heldout, metric) for metric in PREFERENCES}
    for metric in PREFERENCES:  # exactly the complement to 100
        share = columns["differential"][metric]
        columns["naive"][metric] = None if share is None else 100 - share
    return columns


# --- arithmetic ---


def mean(values: Iterable[float]) -> Number:
    """The mean; None for no values or a value that is not finite."""
    values = array("d", values)
    return finite(math.fsum(values) / len(values)) if values and all(map(math.isfinite, values)) else None


def finite(value: float | None) -> Number:
    """The value; None if it is not finite, which JSON cannot represent."""
    return value if value is not None and math.isfinite(value) else None


def _mean_of(heldout: HeldOutResult | None, metric: str) -> Number:
    return mean(row[metric] for row in heldout.scores if metric in row) if heldout else None


def _share(heldout: HeldOutResult | None, other: HeldOutResult | None, metric: str) -> Number:
    """The mean probability, in %, that a picture is preferred to the other model's of the same prompt and seed."""
    pairs = _both(heldout, other, metric)
    share = mean(win_probability(a, b) for a, b in pairs)
    return None if share is None else 100 * share


def _wins(heldout: HeldOutResult | None, other: HeldOutResult | None, metric: str) -> Number:
    """The share of prompts, in %, on which a model scores higher than the other; ties count half."""
    wins = mean(0.5 if a == b else float(a > b) for a, b in _both(heldout, other, metric))
    return None if wins is None else 100 * wins


def _both(heldout: HeldOutResult | None, other: HeldOutResult | None, metric: str) -> list[tuple[float, float]]:
    if heldout is None or other is None or not heldout.scores or not other.scores:
        return []
    return [(a[metric], b[metric]) for a, b in zip(heldout.scores, other.scores, strict=True) if metric in a and metric in b]


def _part(
    base: Mapping[str, Number] | None, tuned: Mapping[str, Number] | None, ceiling: Mapping[str, Number] | None, name: str
) -> Number:
    """The tuned model's position between base (0) and ceiling (1)."""
    low, value, high = ((row or {}).get(name) for row in (base, tuned, ceiling))
    if low is None or value is None or high is None or high <= low:
        return None
    return (value - low) / (high - low)
