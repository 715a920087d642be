"""The page a run ends in: pairs with their advice, held-out pictures, numbers. One self-contained HTML file."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.recipes.artaug import KEPT, HeldOut, Plan, Sample, State
from orchestrator.summary import summarise
from sfumato.runtime.artifacts import ArtifactStore

# A page for the eye: more pictures than this are in the artifact store, not on it.
MOST_PAIRS, MOST_HELD_OUT = 24, 32

NAMES = {
    "clip": "CLIP, agreement with the prompt",
    "aesthetic": "Aesthetic",
    "pickscore": "PickScore",
    "mps": "MPS",
    "finish_objects": "Finish of objects (0 to 1)",
    "finish_sky": "Finish of the sky (0 to 1)",
    "object_presence": "Named objects present",
    "composition_iou": "Overlap of boxes with base",
}


def write_report(
    plan: Plan, state: State, artifacts: ArtifactStore, judged: Mapping[str, Mapping[str, float]] | None, folder: Path
) -> Path:
    """Write ``report.json`` and ``report.html`` (last, so that a page that exists is whole); the page's path."""
    figures = summarise(plan, state, judged)
    _write(folder / "report.json", json.dumps(figures, indent=1, sort_keys=True, allow_nan=False) + "\n")
    environment = Environment(
        loader=PackageLoader("orchestrator"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        figures=figures,
        names=NAMES,
        pairs=[_pair(sample, artifacts) for sample in _shown(state)],
        held_out=[_held_out(row, artifacts) for row in state.heldout[:MOST_HELD_OUT]],
        losses=_losses(state.losses, plan.spec.train.steps_before) if state.losses else "",
        gains=_gains(state.samples) if any(sample.scores_after for sample in state.samples) else "",
        paint=plan.spec.paint,
        train=plan.spec.train,
    )
    _write(folder / "report.html", page)
    return folder / "report.html"


def _shown(state: State) -> list[Sample]:
    """Kept pairs first, then the others that have both pictures."""
    others = [sample for sample in state.samples if sample.after and sample.verdict != KEPT]
    return [*state.kept, *others][:MOST_PAIRS]


def _pair(sample: Sample, artifacts: ArtifactStore) -> dict[str, Any]:
    assert sample.before is not None and sample.after is not None
    return {
        "prompt": sample.prompt,
        "verdict": sample.verdict,
        "kept": sample.verdict == KEPT,
        "before": _png(sample.before.picture, artifacts),
        "after": _png(sample.after.picture, artifacts),
        "scores": [(NAMES[name], value, (sample.scores_after or {})[name]) for name, value in (sample.scores_before or {}).items()],
        "regions": [
            {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "prompt": region.prompt}
            for region in sample.regions
            for x1, y1, x2, y2 in [region.box]
        ],
    }


def _held_out(row: HeldOut, artifacts: ArtifactStore) -> dict[str, Any]:
    return {"prompt": row.prompt, "base": _png(row.base, artifacts), "tuned": _png(row.tuned, artifacts) if row.tuned else ""}


def _png(digest: str, artifacts: ArtifactStore) -> str:
    return "data:image/png;base64," + base64.b64encode(artifacts.get(digest)).decode()


def _losses(losses: Sequence[Sequence[float]], steps_before: int) -> str:
    """The loss of every pair over its steps, smoothed over ten; phi_1 left of the line, phi_2 right."""
    figure, axes = _axes()
    for history in losses:
        axes.plot(
            [sum(history[max(0, i - 9) : i + 1]) / len(history[max(0, i - 9) : i + 1]) for i in range(len(history))],
            linewidth=0.8,
            alpha=0.7,
        )
    axes.axvline(steps_before, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_xlabel("step: φ₁ on X, then φ₂ on X′")
    axes.set_ylabel("flow-matching loss")
    return _svg(figure)


def _gains(samples: Sequence[Sample]) -> str:
    """Every scored pair: what advice did to the aesthetic score and to the agreement with the prompt."""
    figure, axes = _axes()
    for kept, colour in ((False, "#b0b0b0"), (True, "#c8553d")):
        gains = [
            (s.scores_after["aesthetic"] - s.scores_before["aesthetic"], s.scores_after["clip"] - s.scores_before["clip"])
            for s in samples
            if s.scores_before and s.scores_after and (s.verdict == KEPT) is kept
        ]
        axes.scatter([x for x, _ in gains], [y for _, y in gains], s=14, color=colour, label="kept" if kept else "not kept")
    axes.axvline(0, color="#888888", linewidth=0.6)
    axes.axhline(0, color="#888888", linewidth=0.6)
    axes.set_xlabel("aesthetic(X′) − aesthetic(X)")
    axes.set_ylabel("CLIP(P, X′) − CLIP(P, X)")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue().encode()).decode()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
