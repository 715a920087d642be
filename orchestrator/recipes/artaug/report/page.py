"""The HTML page: its content in order. The numbers are those of `orchestrator.recipes.artaug.summary`, the layout is in ``templates``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.recipes.artaug.report import charts, pictures
from orchestrator.recipes.artaug.state import DIVERGED, ENOUGH, KEPT, NO_GAIN, TOO_FEW, ArtAugPlan, State, TuningAttempt
from sfumato.runtime.artifacts import ArtifactStore

# The paper's own numbers (ArtAug, section 4), in the order of the columns.
TABLE_1 = (
    ("FLUX.1[dev]", (6.35, 42.22, 47.52, 26.92, 6.19)),
    ("FLUX.1[dev] + ArtAug", (6.81, 57.78, 52.48, 26.97, 4.44)),
)
TABLE_2 = (("differential", (6.35, 52.85, 50.19, 29.71)), ("naive", (6.25, 47.15, 49.81, 29.34)))
COLUMNS = ("aesthetic", "pickscore", "mps", "clip", "nudenet")
NAIVE = {"naive": "naive", "joint": "naive, one adapter for all pairs"}

# Charts of more samples are thinned to about this number.
MOST_POINTS = 5000

METRICS = {"aesthetic": "Aesthetic", "pickscore": "PickScore", "mps": "MPS", "clip": "CLIP", "nudenet": "NudeNet", "hpsv2": "HPS v2"}
FINISH = {"finish": "all elements", "finish_objects": "objects", "finish_sky": "sky"}
RULES = {
    "no_advice": "no advice",
    "aesthetic": "aesthetic did not rise",
    "clip": "CLIP fell",
    "nudenet": "nudity",
    "vlm_review": "refused by the VLM",
    "human_review": "refused by a person",
    "set_aside": "set aside",
}
REASONS = {
    TOO_FEW: "too few pairs survived filter and review",
    DIVERGED: "every training diverged",
    NO_GAIN: "no strength of the last adapter was better on the tuning prompts than going without it",
    ENOUGH: "the spec allows no more iterations",
}


def render(plan: ArtAugPlan, state: State, artifacts: ArtifactStore, figures: Mapping[str, Any]) -> str:
    """The whole page as HTML."""
    environment = Environment(
        loader=PackageLoader("orchestrator.recipes.artaug.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "short": _short}
    iterations = figures["iterations"]
    return environment.get_template("page.html.j2").render(
        figures=figures,
        reason=REASONS.get(figures["stop_reason"], figures["stop_reason"]),
        tiles=_tiles(figures["evaluation"]),
        grid=pictures.sample_grid(plan, state, artifacts),
        table_1=_table_1(figures["evaluation"]),
        table_2=_table_2(figures["comparison"], state.naive),
        metrics=METRICS,
        rules=RULES,
        finish=FINISH,
        pairs_of=[(iteration.index, pictures.pairs(iteration, artifacts)) for iteration in state.iterations],
        figure4=charts.figure4(iterations),
        heldout=charts.heldout_curves(figures),
        ladder=charts.finish_ladder(figures["judge"] or {}, FINISH),
        gains=[(index, chart) for index, chart in _gains(state) if chart],
        losses=_losses(plan, state),
        tried=_tried(state, figures),
        width=plan.spec.paint.width,
        height=plan.spec.paint.height,
        spec=yaml.safe_dump(figures["spec"], sort_keys=False, width=110),
    )


# --- the head: the main results ---


def _tiles(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Headline numbers of the tuned against the base model; empty if no iteration was fused."""
    base, tuned = evaluation["base"], evaluation["tuned"]
    if tuned is None:
        return []
    tiles = [
        _tile(
            "Aesthetic",
            _signed(_difference(tuned["aesthetic"], base["aesthetic"])),
            f"{_number(base['aesthetic'])} → {_number(tuned['aesthetic'])} of 10",
            "+0.46",
        ),
        _tile("PickScore", _number(tuned["pickscore"], 1, " %"), "preferred to the base model", _number(57.78, 1, " %")),
        _tile("MPS", _number(tuned["mps"], 1, " %"), "preferred to the base model", _number(52.48, 1, " %")),
        _tile("CLIP", _signed(_difference(tuned["clip"], base["clip"])), f"{_number(base['clip'])} → {_number(tuned['clip'])}", "+0.05"),
    ]
    for key, name in (("finish", "Finish, by the judge"), ("finish_objects", "Finish, objects only")):
        part = evaluation["finish_gain"][key]
        if part is not None:
            way = f"{_number(base[key], 2)} → {_number(tuned[key], 2)}"
            more = f"of the way to the ceiling: {way} of {_number(evaluation['ceiling'][key], 2)}"
            tiles.append(_tile(name, _number(100 * part, 0, " %"), more, ""))
    return tiles


def _tile(name: str, value: str, more: str, paper: str) -> dict[str, str]:
    return {"name": name, "value": value, "more": more, "paper": paper}


# --- the paper's tables with this run's numbers ---


def _table_1(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    base, tuned = evaluation["base"], evaluation["tuned"] or {}
    here = [("this run: base", [base.get(key) for key in COLUMNS]), ("this run: tuned", [tuned.get(key) for key in COLUMNS])]
    return [*_compared(TABLE_1, lower=("nudenet",), paper=True), *_compared(here, lower=("nudenet",), paper=False)]


def _table_2(comparison: Mapping[str, Any] | None, naive: TuningAttempt | None) -> list[dict[str, Any]]:
    rows = _compared([(f"FLUX.1[dev], {name}", values) for name, values in TABLE_2], lower=(), paper=True)
    if comparison is None or naive is None:
        return rows
    names = {"differential": "differential", "naive": NAIVE[naive.objective]}
    here = [(f"this run: {label}", [comparison[name][key] for key in COLUMNS[:4]]) for name, label in names.items()]
    return [*rows, *_compared(here, lower=(), paper=False)]


def _compared(rows: Any, lower: tuple[str, ...], *, paper: bool) -> list[dict[str, Any]]:
    """Two rows of a table, with the better of the two values in each column marked."""
    (name_a, a), (name_b, b) = rows
    marked: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for column, left, right in zip(COLUMNS, a, b, strict=False):
        gap = 0.0 if left is None or right is None else (right - left) * (-1 if column in lower else 1)
        marked[0].append({"text": _number(left, 2), "better": gap < 0})
        marked[1].append({"text": _number(right, 2), "better": gap > 0})
    return [{"name": name_a, "cells": marked[0], "paper": paper}, {"name": name_b, "cells": marked[1], "paper": paper}]


# --- charts and tables of training ---


def _gains(state: State) -> list[tuple[int, str]]:
    charted = []
    for iteration in state.iterations:
        points = [
            (s.gain, s.scores_after["clip"] - s.scores_before["clip"], s.verdict == KEPT)
            for s in islice(iteration.samples, None, None, -(-len(iteration.samples) // MOST_POINTS))
            if s.scores_before is not None and s.scores_after is not None
        ]
        charted.append((iteration.index, charts.gains(points)))
    return charted


def _losses(plan: ArtAugPlan, state: State) -> list[tuple[str, str]]:
    """Every attempt's losses; naive training has no φ₁."""
    attempts = [(f"iteration {i.index}", i.attempt, plan.spec.train.steps_before) for i in state.iterations if i.attempt]
    if state.naive is not None:
        attempts.append((f"{NAIVE[state.naive.objective]}, for Table 2", state.naive, 0))
    charted = []
    for name, attempt, first in attempts:
        histories = [training.losses for training in attempt.trainings if training.losses]
        if histories:
            charted.append((name, charts.losses(histories, first)))
    return charted


def _tried(state: State, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidate alphas of each iteration on the tuning prompts, and the chosen one."""
    rows = []
    for row in figures["iterations"]:
        if row["alphas"]:
            rows.append({"name": f"iteration {row['index']}", "alphas": row["alphas"], "chosen": row["alpha"]})
    if state.naive is not None and state.naive.candidates:
        tried = [candidate for candidate in (state.naive.standing, *state.naive.candidates) if candidate is not None]
        alphas = [{"alpha": c.alpha, "aesthetic": c.aesthetic, "clip": c.clip} for c in tried]
        rows.append({"name": NAIVE[state.naive.objective], "alphas": alphas, "chosen": state.naive.alpha})
    return rows


# --- numbers as text ---


def _number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}{unit}".replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _signed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
