"""``sfumato score``: numbers for pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def score(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.", metavar="IMAGE...")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the pictures should show.")],
    metrics: Annotated[str, typer.Option(help="Which scores, separated by commas.")] = "aesthetic,clip,pickscore,mps",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score pictures: aesthetic (1 to 10), CLIP agreement with the prompt (cosine x 100), PickScore and MPS preference.

    With exactly two pictures, also how probable it is that the first one is preferred.

    Example: sfumato score moon.png --prompt "a full moon over mountains at night"
    """
    from services.scoring.engine import ScoringEngine, check_prompt, win_probability
    from services.scoring.loading import load_scorers
    from sfumato.runtime.images import read_image

    check_prompt(prompt)
    pictures = [read_image(path, "image") for path in images]
    names = list(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip()))
    engine = ScoringEngine(load_scorers(names))
    scores = engine.score(pictures, [prompt] * len(pictures), names)
    preferred = {}
    if len(scores) == 2:
        preferred = {name: win_probability(scores[0][name], scores[1][name]) for name in ("pickscore", "mps") if name in scores[0]}
    if as_json:
        entries = [{"image": str(path)} | row for path, row in zip(images, scores, strict=True)]
        versions = {metric.name: metric.version for metric in engine.metrics}
        report = {"prompt": prompt, "scores": entries, "versions": versions}
        typer.echo(json.dumps(report | ({"first_preferred": preferred} if preferred else {})))
    else:
        _print(images, names, scores, preferred)


def _print(images: list[Path], names: list[str], scores: list[dict[str, float]], preferred: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("image")
    for name in names:
        table.add_column(name, justify="right")
    for path, row in zip(images, scores, strict=True):
        table.add_row(str(path), *(f"{row[name]:.2f}" for name in names))
    console = Console()
    console.print(table)
    for name, value in preferred.items():
        console.print(f"By {name} the first is preferred with {value:.0%}.")
