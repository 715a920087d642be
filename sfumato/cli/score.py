"""``sfumato score``: scores of images, and the metrics' meanings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.servers import Local, server_option
from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights


def score(
    images: Annotated[list[Path] | None, typer.Argument(help="PNG, JPEG or WebP files.", metavar="IMAGE...")] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the pictures should show.")] = "",
    metrics: Annotated[str, typer.Option(help="Which scores, separated by commas.")] = "aesthetic,clip,pickscore,mps",
    model: Annotated[list[str] | None, typer.Option(metavar="METRIC=REF", help="Other weights: a folder or a hub model.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the metrics: range, direction and weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    server: Annotated[str, server_option("scoring")] = "",
    local: Local = False,
) -> None:
    """Score pictures: aesthetic (1 to 10), CLIP agreement with the prompt (cosine x 100), PickScore and MPS preference.

    Other metrics: hpsv2, nudenet (1 if it finds nudity), and vista-clip and so on for the built-in weights if --model names
    others. For exactly two pictures it also prints the probability that the first is preferred.

    Example: sfumato score moon.png --prompt "a full moon over mountains at night"
    """
    from sfumato.cli.calls import address_of
    from sfumato.texts import normalised

    if show:
        _list(_models(model or []), as_json)
        return
    if not images:
        raise InvalidInput("image", "none is given.", hint="Name one or more files, or ask for --list.")
    names = list(dict.fromkeys(name.strip() for name in metrics.split(",") if name.strip()))
    prompt = normalised(prompt)
    address = address_of("scoring", server, local, "model" if model else "")
    scores, versions = _scored_there(images, prompt, names, address) if address else _scored_here(images, prompt, names, model or [])
    preferred = {}
    if len(scores) == 2:
        from sfumato.scoring.preference import win_probability

        logits = [name for name in names if name.removeprefix("vista-") in ("pickscore", "mps")]
        preferred = {name: win_probability(scores[0][name], scores[1][name]) for name in logits}
    if as_json:
        entries = [{"image": str(path)} | row for path, row in zip(images, scores, strict=True)]
        report = {"prompt": prompt, "scores": entries, "versions": versions}
        typer.echo(json.dumps(report | ({"first_preferred": preferred} if preferred else {})))
    else:
        _print(images, names, scores, preferred)


def _scored_here(images: list[Path], prompt: str, names: list[str], models: list[str]) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Each picture's scores, and the metrics' versions, by models in this process."""
    from services.scoring.engine import ScoringEngine, check_prompt
    from services.scoring.loading import Scorers
    from sfumato.runtime.device import pick_device
    from sfumato.runtime.images import read_image

    scorers = Scorers(models=_models(models), device=pick_device())
    check_prompt(prompt)
    pictures = [read_image(path, "image") for path in images]
    engine = ScoringEngine(scorers.load(names))
    scores = engine.score(pictures, [prompt] * len(pictures), names)
    return scores, {metric.name: metric.version for metric in engine.metrics}


def _scored_there(images: list[Path], prompt: str, names: list[str], address: str) -> tuple[list[dict[str, float]], dict[str, str]]:
    """The same by the service at an address."""
    from sfumato.cli import calls

    return calls.scores(address, images, prompt, names)


def _models(pairs: list[str]) -> dict[str, str]:
    models = {}
    for pair in pairs:
        metric, equals, ref = pair.partition("=")
        if not (metric and equals and ref):
            raise InvalidInput("model", f"{pair!r} is not METRIC=REF.", hint="For example: --model clip=openai/clip-vit-large-patch14")
        models[metric] = ref
    return models


def _list(models: dict[str, str], as_json: bool) -> None:
    """Print every metric with its range, direction and version, or what is missing."""
    from rich.console import Console
    from rich.table import Table

    from services.scoring.loading import KNOWN, Scorers
    from sfumato.runtime.device import pick_device

    scorers = Scorers(models=models, device=pick_device())

    rows: list[Mapping[str, Any]] = []
    for name in KNOWN:
        try:
            rows.append(asdict(scorers.load([name])[0].metric))
        except (MissingWeights, BrokenWeights) as error:
            rows.append({"name": name, "missing": str(error)})
    if as_json:
        typer.echo(json.dumps({"metrics": rows}))
        return
    table = Table("metric", "range", "better", "version")
    for row in rows:
        if "missing" in row:
            table.add_row(row["name"], "", "", row["missing"])
        else:
            better = "higher" if row["higher_is_better"] else "lower"
            table.add_row(row["name"], f"{row['low']:g} to {row['high']:g}", better, row["version"])
    Console().print(table)


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
