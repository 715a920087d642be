"""``sfumato vista``: render the world, train its models, measure them."""

from __future__ import annotations

import json
import random
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The built-in miniature world and its models.")


class ModelPart(StrEnum):
    """The models, in the order of their dependencies."""

    vae = "vae"
    transformer = "transformer"
    guided = "guided"
    detector = "detector"
    judge = "judge"
    clip = "clip"
    aesthetic = "aesthetic"
    pickscore = "pickscore"
    mps = "mps"
    understanding = "understanding"


class Device(StrEnum):
    """Where to train."""

    cpu = "cpu"
    cuda = "cuda"


@app.command()
def sample(
    grid: Annotated[bool, typer.Option("--grid", help="Pairs of one scene in both finishes, instead of one picture.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    size: Annotated[int, typer.Option(min=16, max=512, help="Side of a picture in pixels.")] = 128,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("vista.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print captions and boxes.")] = False,
) -> None:
    """Render scenes of the world.

    Example: sfumato vista sample --grid --seed 3 -o world.png
    """
    from sfumato.runtime.images import write_png
    from sfumato.vista import phrases, sheets, world

    rng = random.Random(seed)
    scenes = [world.sample_scene(rng, count=None if grid else 3) for _ in range(16 if grid else 1)]
    pictures = [world.render(world.with_finish(s, f), size) for s in scenes for f in ((False, True) if grid else (True,))]
    write_png(sheets.sheet(pictures, columns=8 if grid else 1), output, "output")
    if as_json:
        entries = [{"caption": phrases.caption(s, rng), "boxes": {e.kind: world.pixel_box(e, size) for e in s.elements}} for s in scenes]
        typer.echo(json.dumps(entries))
    else:
        typer.echo(f"{len(pictures)} pictures in {output}")


@app.command()
def prompts(
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the scenes; two seeds share no scene.")] = 0,
    without: Annotated[list[Path] | None, typer.Option(help="A file whose prompts are left out (repeatable).")] = None,
    loose: Annotated[float, typer.Option(min=0, max=1, help="Share of ambiguous prompts, for a VLM to refine.")] = 0.0,
    aesthetic: Annotated[bool, typer.Option("--aesthetic", help="The same scenes, line by line, in aesthetic phrases.")] = False,
) -> None:
    """Print plain prompts about random scenes, one per line, none twice.

    Examples:
        sfumato vista prompts --count 64 --seed 1 > prompts.txt
        sfumato vista prompts --count 32 --seed 2 --without prompts.txt > held-out.txt
    """
    from sfumato.texts import lines_of
    from sfumato.vista.phrases import outright, plain_prompt
    from sfumato.vista.training.questions import loose_prompt

    rng, ways = random.Random(f"prompts:{seed}"), random.Random(f"ways:{seed}")
    taken = {line for file in without or [] for line in lines_of(file, "without")}
    seen: dict[str, str] = {}
    while len(seen) < count:
        scene, prompt = loose_prompt(rng) if ways.random() < loose else plain_prompt(rng)
        if prompt not in taken:
            seen.setdefault(prompt, outright(scene, len(seen)))
    typer.echo("\n".join(seen.values() if aesthetic else seen))


@app.command()
def train(
    part: Annotated[list[ModelPart] | None, typer.Option(help="Train only this part (repeatable; default: all).")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.cpu,
    budget: Annotated[str, typer.Option(help="Time for all parts together: 3h, 20m, 90s.")] = "3h",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of each part, instead of a budget.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoints.")] = False,
    folder: Annotated[Path, typer.Option(help="Folder for checkpoints and data.")] = Path("runs/vista"),
    install: Annotated[bool, typer.Option("--install", help="Replace the weights in the package with the trained ones.")] = False,
    skip_evaluation: Annotated[bool, typer.Option("--skip-evaluation", help="Do not measure at the end.")] = False,
) -> None:
    """Train the models from scratch, with progress and checkpoints; Ctrl-C keeps them, --resume continues.

    Examples:
        sfumato vista train --budget 5h
        sfumato vista train --part transformer --budget 20m --resume
        sfumato vista train --device cuda --budget 30m --install
    """
    from sfumato.vista.training import parts
    from sfumato.vista.training.loop import parse_budget

    chosen = [p.value for p in part] if part else [p.value for p in ModelPart]
    parts.train(chosen, folder, device=device.value, budget=parse_budget(budget), steps=steps, resume=resume)
    if install:
        parts.install(folder, chosen)
    if not skip_evaluation:
        evaluate(as_json=False)


@app.command()
def evaluate(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="generator, understanding or scoring (repeatable).")] = None,
) -> None:
    """Measure the shipped models on 128 held-out prompts with the independent detector and judge.

    Example: sfumato vista evaluate --json
    """
    from rich.console import Console
    from rich.table import Table

    from sfumato.cli import figures

    groups = figures.choose(only)
    with Console(stderr=True).status("measuring ...") as status:
        measured = figures.measure(groups, on_group=lambda name: status.update(f"measuring {name} ..."))
    if as_json:
        typer.echo(json.dumps(measured, indent=1))
        return
    table = Table("figure", "measured", "target")
    for name, value in measured.items():
        low = figures.TARGETS.get(name)
        table.add_row(name, f"{value:.3f}", "" if low is None else f">= {low}", style="" if low is None or value >= low else "red")
    Console().print(table)
