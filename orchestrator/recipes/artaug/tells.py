"""The metrics and notes that the stages report during a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.engine.stages import Tells
from orchestrator.recipes.artaug.state import KEPT, SET_ASIDE, Sample, State
from orchestrator.recipes.events import mean_of
from sfumato.runtime.tasks import Json

Metrics = Mapping[str, Json]


def _scored(which: str) -> Any:
    def aesthetic(sample: Sample) -> float | None:
        if not sample.scores_before or not sample.scores_after:
            return None
        return (sample.scores_before if which == "before" else sample.scores_after)["aesthetic"]

    return aesthetic


def _aesthetic_note(metrics: Metrics, _: State) -> str:
    names = {"before": "X", "after": "X'"}
    values = {name: value for name, value in metrics.items() if name.startswith("aesthetic") and value is not None}
    shown = ", ".join(f"{names.get(name[10:], name[10:])} {value:.2f}" for name, value in values.items())
    return f"aesthetic {shown}" if shown else ""


def _kept(state: State) -> dict[str, Any]:
    kept = sum(sample.verdict == KEPT for sample in state.samples)
    return {"kept": kept, "kept_share": kept / len(state.samples)}


def _trained(state: State) -> dict[str, Any]:
    attempt = state.attempt
    if attempt is None:
        return {}
    ends = [training.losses[-1] for training in attempt.trainings if training.losses]
    trained = len(attempt.adapters)
    return {"trained": trained, "diverged": len(attempt.trainings) - trained, "last_loss": mean_of(ends)}


def _compressed(state: State) -> dict[str, Any]:
    return dict(state.attempt.compression) if state.attempt is not None and state.attempt.compression is not None else {}


def _chosen(state: State) -> dict[str, Any]:
    attempt = state.attempt
    if attempt is None or not attempt.candidates:
        return {}
    tried = [{"alpha": c.alpha, "aesthetic": c.aesthetic, "clip": c.clip} for c in attempt.candidates if c.pictures]
    return {"alpha": attempt.alpha, "tried": tried}


def _measured(state: State) -> dict[str, Any]:
    sets = {"base": state.base, "tuned": state.attempt.heldout if state.attempt else None}
    return {
        f"{metric}_{name}": mean_of(row[metric] for row in heldout.scores)
        for name, heldout in sets.items()
        if heldout is not None and heldout.scores
        for metric in heldout.scores[0]
    }


def _concluded(state: State) -> dict[str, Any]:
    return {"kept": state.iterations[-1].verdicts[KEPT], "stop_reason": state.stop_reason} if state.iterations else {}


def _outcome(state: State) -> str:
    """A finished iteration in one line."""
    return ", ".join(_outcome_words(state)) + (f"; {state.stop_reason}" if state.stop_reason else "")


def _outcome_words(state: State) -> Iterator[str]:
    last = state.iterations[-1]
    verdicts, of = last.verdicts, len(last.samples)
    yield f"iteration {last.index}: {verdicts[KEPT]} of {of} kept ({verdicts[KEPT] / of:.0%})"
    if verdicts[SET_ASIDE]:
        yield f"{verdicts[SET_ASIDE]} lost"
    if last.attempt is not None and last.attempt.alpha:
        yield f"fused with alpha {last.attempt.alpha:g}"
        if state.base is not None and last.attempt.heldout is not None:
            base, tuned = (mean_of(row["aesthetic"] for row in held.scores) for held in (state.base, last.attempt.heldout))
            if base is not None and tuned is not None:
                yield f"aesthetic {base:.2f} -> {tuned:.2f} on held-out prompts"


GROUND: Tells[State, Sample] = Tells(sums={"regions": lambda sample: len(sample.regions), "rejected": lambda sample: bool(sample.rejected)})
SCORE: Tells[State, Sample] = Tells(
    means={"aesthetic_before": _scored("before"), "aesthetic_after": _scored("after")}, note=_aesthetic_note
)
SIMILARITY: Tells[State, Sample] = Tells(means={"image_cosine": lambda sample: sample.cosine})
FILTER: Tells[State, Sample] = Tells(
    metrics=_kept, note=lambda metrics, state: f"{metrics['kept']} of {len(state.samples)} kept ({metrics['kept_share']:.0%})"
)
TRAIN: Tells[State, Sample] = Tells(
    metrics=_trained, note=lambda metrics, _: f"{metrics['diverged']} diverged" if metrics["diverged"] else ""
)
AVERAGE: Tells[State, Sample] = Tells(metrics=_compressed)
CHOOSE_ALPHA: Tells[State, Sample] = Tells(
    metrics=_chosen, note=lambda metrics, _: f"alpha {metrics['alpha']:g}" if metrics["alpha"] else "no alpha is an improvement"
)
SCORE_HELDOUT: Tells[State, Sample] = Tells(metrics=_measured, note=_aesthetic_note)
CONCLUDE: Tells[State, Sample] = Tells(metrics=_concluded, outcome=_outcome)


def compared(tells: Tells[State, Sample]) -> Tells[State, Sample]:
    """The report of a stage in the comparison; empty if the spec has no comparison."""
    metrics = tells.metrics
    if metrics is None:
        return tells
    return replace(tells, metrics=lambda state: metrics(state) if state.attempt is not None else {})
