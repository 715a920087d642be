"""The numbers of a finished ArtAug run: plain functions from its state to what report.json holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.recipes.artaug import HeldOut, Plan, State

# Metrics whose scores are logits of a preference: reported as the mean pairwise probability (PickScore, equation 1).
PREFERENCES = ("pickscore", "mps")


def preference(a: float, b: float) -> float:
    """The probability that the picture scored ``a`` is preferred to the one scored ``b``."""
    return 0.5 * (1 + math.tanh((a - b) / 2))


def held_out(rows: Sequence[HeldOut], metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """By metric: mean of base and tuned, the share of prompts that tuned wins (ties half), for preferences the share in %."""
    figures: dict[str, dict[str, float]] = {}
    for metric in metrics:
        base = [row.scores_base[metric] for row in rows if row.scores_base is not None]
        tuned = [row.scores_tuned[metric] for row in rows if row.scores_tuned is not None]
        figures[metric] = {"base": _mean(base)}
        if tuned:
            wins = _mean([0.5 if t == b else float(t > b) for b, t in zip(base, tuned, strict=True)])
            figures[metric] |= {"tuned": _mean(tuned), "win_rate": wins}
            if metric in PREFERENCES:
                share = 100 * _mean([preference(t, b) for b, t in zip(base, tuned, strict=True)])
                figures[metric] |= {"base_share": 100 - share, "tuned_share": share}
    return figures


def summarise(plan: Plan, state: State, judged: Mapping[str, Mapping[str, float]] | None) -> dict[str, Any]:
    """Everything the report says in numbers; equal runs give equal values."""
    metrics = plan.spec.score.metrics
    pairs = [sample for sample in state.samples if sample.scores_before is not None and sample.scores_after is not None]
    before = {m: _mean([s.scores_before[m] for s in pairs if s.scores_before]) for m in metrics}
    after = {m: _mean([s.scores_after[m] for s in pairs if s.scores_after]) for m in metrics}
    return {
        "name": plan.spec.name,
        "recipe": plan.spec.recipe,
        "models": {name: model.version for name, model in plan.models.items()},
        "prompts": len(state.samples),
        "regions": sum(len(sample.regions) for sample in state.samples),
        "answers_rejected": sum(bool(sample.rejected) for sample in state.samples),
        "pairs": {"scored": len(pairs), "before": before, "after": after},
        "filter": state.verdicts,
        "kept": len(state.kept),
        "kept_share": len(state.kept) / len(state.samples),
        "training": {
            "adapters": list(state.adapters),
            "diverged": state.diverged,
            "losses": [
                {"before": _ends(history[: plan.spec.train.steps_before]), "after": _ends(history[plan.spec.train.steps_before :])}
                for history in state.losses
            ],
        },
        "average": {"adapter": state.average, **(state.compression or {})},
        "fused": {"adapter": state.fused, "alpha": plan.spec.fuse.alpha},
        "held_out": {"prompts": len(state.heldout), "scores": held_out(state.heldout, metrics)},
        "judge": _finite(judged),
    }


def _ends(losses: Sequence[float]) -> dict[str, float]:
    """Mean loss over the first and the last tenth of the steps."""
    part = max(1, len(losses) // 10)
    return {"first": _mean(losses[:part]), "last": _mean(losses[-part:])}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _finite(judged: Mapping[str, Mapping[str, float]] | None) -> dict[str, dict[str, float | None]] | None:
    if judged is None:
        return None
    return {variant: {name: value if math.isfinite(value) else None for name, value in marks.items()} for variant, marks in judged.items()}
