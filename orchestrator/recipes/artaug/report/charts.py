"""The page's charts: small SVG pictures by matplotlib, with reproducible bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

INK, SOFT, LINE, ACCENT, COOL = "#25221f", "#8a847c", "#e4dfd8", "#c8553d", "#3f6f78"
# The page's font replaces matplotlib's in the SVG's text, so no font is embedded.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sfumato",
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}
SMOOTHED = 10
"""Window of the running mean of a loss, in steps."""


def figure4(iterations: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The paper's Figure 4: means over every iteration's pairs before and after advice, their cosine, and the kept share."""
    steps = [row["index"] for row in iterations]

    def series(key: str, scale: float = 1.0) -> list[float | None]:
        return [None if row[key] is None else scale * row[key] for row in iterations]

    return [
        {"title": title, "svg": curves(steps, rows, from_zero="%" in title)}
        for title, rows in (
            ("Aesthetic", {"X": series("aesthetic_before"), "X′": series("aesthetic_after")}),
            ("CLIP", {"X": series("clip_before"), "X′": series("clip_after")}),
            ("Likeness of X and X′", {"": series("image_cosine")}),
            ("Pairs kept, %", {"": series("kept_share", 100)}),
        )
    ]


def heldout_curves(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    """The held-out results of every fused iteration; 0 is the base model."""
    fused = [row for row in figures["iterations"] if row["heldout"] is not None]
    if not fused:
        return []
    base, steps = figures["evaluation"]["base"], [0, *(row["index"] for row in fused)]
    charts = []
    for title, key in (("Aesthetic", "aesthetic"), ("CLIP", "clip")):
        charts.append({"title": title, "svg": curves(steps, {"": [base[key], *(row["heldout"][key] for row in fused)]})})
    wins = {name: [50.0, *(row["heldout"][key] for row in fused)] for name, key in (("PickScore", "pickscore_win"), ("MPS", "mps_win"))}
    wins = {name: row for name, row in wins.items() if None not in row}
    if wins:
        charts.append({"title": "Preferred to base, %", "svg": curves(steps, wins)})
    return charts


def curves(steps: Sequence[int], rows: Mapping[str, Sequence[float | None]], *, from_zero: bool = False) -> str:
    """Lines over iterations, labelled if there are several; missing values are left out."""

    def draw(axes: Any) -> None:
        colours = [COOL, ACCENT] if len(rows) > 1 else [ACCENT]
        for (name, values), colour in zip(rows.items(), colours, strict=False):
            points = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linewidth=2, marker="o", markersize=5, label=name)
        axes.set_xticks(list(steps))
        axes.set_xlim(min(steps) - 0.35, max(steps) + 0.35)
        axes.margins(y=0.18)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("iteration")
        axes.grid(axis="x", visible=False)
        if len(rows) > 1:
            axes.legend(loc="best", ncols=2, handlelength=1.2)

    return _svg(draw, (3.0, 2.1))


def finish_ladder(judge: Mapping[str, Mapping[str, float | None]], names: Mapping[str, str]) -> str:
    """The finish of every iteration between the base model's and the ceiling's; empty without a judge."""
    steps = sorted((name for name in judge if name.startswith("iteration ")), key=lambda name: int(name.split()[1]))

    def draw(axes: Any) -> None:
        for y, key in enumerate(reversed(tuple(names))):
            ends = [judge[name][key] for name in ("base", "ceiling") if name in judge and judge[name][key] is not None]
            if len(ends) == 2:
                axes.plot(ends, [y, y], color=LINE, linewidth=7, solid_capstyle="round", zorder=1)
            marks = [("base", SOFT, 60), *((name, ACCENT, 42 if name != steps[-1] else 110) for name in steps), ("ceiling", COOL, 60)]
            for name, colour, size in marks:
                value = judge.get(name, {}).get(key)
                if value is not None:
                    axes.scatter([value], [y], s=size, color=colour, zorder=3, linewidths=1.2, edgecolors="white")
                    text, shift = name.removeprefix("iteration "), 9 if name in steps else -17
                    axes.annotate(text, (value, y), (0, shift), textcoords="offset points", ha="center", fontsize=9, color=colour)
        axes.set_yticks(range(len(names)), [names[key] for key in reversed(tuple(names))])
        axes.set_ylim(-0.55, len(names) - 0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("mean probability of the beautiful finish")
        axes.tick_params(axis="y", labelcolor=INK)

    return _svg(draw, (7.6, 2.5)) if judge else ""


def losses(histories: Sequence[Sequence[float]], first: int) -> str:
    """Every pair's loss over its steps, smoothed; φ₁ left of the line, φ₂ right. ``first`` is 0 where there was no φ₁."""

    def draw(axes: Any) -> None:
        for history in histories:
            axes.plot(_smooth(history, first), linewidth=1.0, alpha=0.55, color=ACCENT)
        if first:
            axes.axvline(first, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")

    return _svg(draw, (3.0, 1.9))


def gains(pairs: Sequence[tuple[float, float, bool]]) -> str:
    """The changes of the aesthetic and the CLIP score of every scored pair under advice; the kept ones in colour."""

    def draw(axes: Any) -> None:
        for kept, colour, name in ((False, "#b9b3ab", "removed"), (True, ACCENT, "kept")):
            rows = [(x, y) for x, y, was_kept in pairs if was_kept is kept]
            axes.scatter([x for x, _ in rows], [y for _, y in rows], s=16, color=colour, label=name, alpha=0.8, linewidths=0)
        axes.axvline(0, color=SOFT, linewidth=0.7)
        axes.axhline(0, color=SOFT, linewidth=0.7)
        axes.set_xlabel("aesthetic, X′ − X")
        axes.set_ylabel("CLIP, X′ − X")
        axes.legend(loc="best", handletextpad=0.1)

    return _svg(draw, (3.0, 2.3)) if pairs else ""


def _smooth(values: Sequence[float], first: int) -> list[float]:
    """The running mean, restarted at the first step of φ₂."""
    smooth = []
    for index in range(len(values)):
        start = max(first if first <= index else 0, index - SMOOTHED + 1)
        part = values[start : index + 1]
        smooth.append(sum(part) / len(part))
    return smooth


def _svg(draw: Any, size: tuple[float, float]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().replace("'DejaVu Sans'", "system-ui, 'Segoe UI', 'DejaVu Sans'")
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()
