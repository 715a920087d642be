"""``sfumato lora``: inspect, combine, compress and export adapter files, and verify that other programs load them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from sfumato.lora.adapter import Adapter
    from sfumato.lora.files import Verified

app = typer.Typer(no_args_is_help=True, help="LoRA files: export, convert, verify, average, stack, compress, scale.")

Source = Annotated[Path, typer.Argument(help="A file of diffusers, kohya, OneTrainer or ComfyUI, or a PEFT folder.", metavar="FILE")]
Sources = Annotated[list[Path], typer.Argument(help="Such files, or PEFT folders.", metavar="FILE...")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write, in diffusers' layout.")]
Model = Annotated[str, typer.Option(help="vista, or a diffusers pipeline's folder; only its configuration is read.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def root() -> None:
    """LoRA files: export, convert, verify, average, stack, compress, scale."""


@app.command()
def info(source: Source, as_json: AsJson = False) -> None:
    """Print an adapter's modules, ranks, norm of the update and metadata.

    Example: sfumato lora info runs/ID/adapter.safetensors
    """
    from sfumato.lora.adapter import norm
    from sfumato.lora.files import component, load

    adapter = load(source)
    ranks = adapter.ranks
    report = {
        "file": str(source),
        "denoiser": component(adapter),
        "modules": len(ranks),
        "ranks": {"smallest": min(ranks.values()), "largest": max(ranks.values()), "sum": sum(ranks.values())},
        "parameters": sum(a.numel() + b.numel() for a, b in adapter.factors.values()),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for pair in adapter.factors.values() for t in pair}),
        "norm": norm(adapter),
        "metadata": dict(adapter.metadata),
    }
    if as_json:
        typer.echo(json.dumps(report | {"rank_of": ranks}))
        return
    small, large = min(ranks.values()), max(ranks.values())
    typer.echo(f"{source}: {len(ranks)} modules of a {report['denoiser']}, rank {small if small == large else f'{small} to {large}'}")
    typer.echo(f"{report['parameters']:,} numbers ({', '.join(report['dtypes'])}), norm of the update {report['norm']:.4g}")
    for key, value in adapter.metadata.items():
        typer.echo(f"{key}: {value}")


@app.command()
def export(
    source: Source,
    layout: Annotated[str, typer.Option("--as", help="diffusers, peft (a folder) or kohya (ComfyUI, A1111, sd-scripts).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; for peft the folder.")],
    model: Model = "vista",
) -> None:
    """Write an adapter for another program, load it back by that program's library and compare every update.

    Example: sfumato lora export runs/ID/adapter.safetensors --as kohya --model FLUX.1-dev -o artaug.safetensors
    """
    from sfumato.errors import InvalidInput
    from sfumato.lora import files

    if layout not in list(files.Layout):
        raise InvalidInput("as", f"{layout!r} is not a layout.", hint=f"Give one of {', '.join(files.Layout)}.")
    pipeline = _skeleton(model)
    adapter = files.load(source, files.denoiser_of(pipeline))
    made = files.export(adapter, output, files.Layout(layout), pipeline)
    typer.echo(f"{output}: {len(adapter.factors)} modules, loaded back by {made.loader}, updates differ by {made.difference:.1e} at most")
    _tell_unread(made)


@app.command()
def convert(
    source: Source,
    output: Output,
    without_text_encoders: Annotated[
        bool, typer.Option("--without-text-encoders", help="Leave out the factors of text encoders; they are refused otherwise.")
    ] = False,
) -> None:
    """Write a file of any layout that is read in the plain layout: diffusers' names, scales in the numbers, one rank.

    Example: sfumato lora convert downloaded.safetensors --without-text-encoders -o plain.safetensors
    """
    from sfumato.lora.files import load

    _write(load(source, without_text_encoders=without_text_encoders), output, {})


@app.command()
def verify(source: Source, model: Model = "vista", as_json: AsJson = False) -> None:
    """Load a file as other programs do, and fail if a key does not bind or an update differs from the file's.

    Example: sfumato lora verify artaug.safetensors --model FLUX.1-dev
    """
    from sfumato.lora import files

    pipeline = _skeleton(model)
    adapter = files.load(source, files.denoiser_of(pipeline))
    files.check_fits(adapter, files.denoiser_of(pipeline))
    found = files.verify(source, pipeline, adapter)
    if as_json:
        report = {"file": str(source), "modules": len(adapter.factors), "loader": str(found.loader), "difference": found.difference}
        typer.echo(json.dumps(report | {"unread": found.unread}))
        return
    typer.echo(f"{source}: {len(adapter.factors)} modules bound by {found.loader}, updates differ by {found.difference:.1e} at most")
    _tell_unread(found)


@app.command()
def average(sources: Sources, output: Output) -> None:
    """The exact mean of the updates (not of the factors): ranks add up, missing modules count as zero. Compress it afterwards.

    Example: sfumato lora average pair-1.safetensors pair-2.safetensors -o mean.safetensors
    """
    from sfumato.lora.adapter import mean
    from sfumato.lora.files import load

    _write(mean([load(source) for source in sources]), output, {"average_of": str(len(sources))})


@app.command()
def stack(
    sources: Sources,
    output: Output,
    scales: Annotated[str, typer.Option(help="A weight per file, separated by commas (default: 1 each).")] = "",
) -> None:
    """The sum of the updates as one adapter, for example of all iterations of a run.

    Example: sfumato lora stack one.safetensors two.safetensors --scales 0.8,1 -o both.safetensors
    """
    from sfumato.lora import adapter as algebra
    from sfumato.lora.files import load

    weights = _numbers(scales, len(sources))
    _write(algebra.stack([load(source) for source in sources], weights), output, {"stack_of": str(len(sources))})


@app.command()
def compress(
    source: Source,
    rank: Annotated[int, typer.Option(help="The new rank of every module.")],
    output: Output,
    as_json: AsJson = False,
) -> None:
    """The best approximation with a smaller rank, and its relative error.

    Example: sfumato lora compress mean.safetensors --rank 16 -o small.safetensors
    """
    from sfumato.lora import adapter as algebra
    from sfumato.lora.files import load

    result = algebra.compress(load(source), rank)
    worst = max(result.errors, key=lambda name: result.errors[name])
    _write(result.adapter, output, {"compressed_to": str(rank), "compression_error": f"{result.error:.3e}"}, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({"file": str(output), "rank": rank, "error": result.error, "errors": dict(result.errors)}))
    else:
        typer.echo(f"relative error {result.error:.3%} in all, at most {result.errors[worst]:.3%} ({worst})")


@app.command()
def scale(
    source: Source,
    factor: Annotated[float, typer.Option(help="The factor of the update.")],
    output: Output,
) -> None:
    """Multiply an update by a factor, for programs without an adapter weight.

    Example: sfumato lora scale adapter.safetensors --factor 0.7 -o weaker.safetensors
    """
    from sfumato.lora import adapter as algebra
    from sfumato.lora.files import load

    _write(algebra.scale(load(source), factor), output, {"scaled_by": str(factor)})


def _tell_unread(found: Verified) -> None:
    """Say what keeps diffusers from reading a file that was converted first."""
    if found.unread:
        typer.echo(f"diffusers itself does not read it whole ({found.unread}); for diffusers: sfumato lora convert")


def _skeleton(model: str) -> DiffusionPipeline:
    from sfumato.lora.binding import skeleton
    from sfumato.runtime.settings import Settings
    from sfumato.vista import weights

    return skeleton((Settings().weights or weights.ROOT) / "generator" if model == "vista" else Path(model))


def _numbers(text: str, count: int) -> list[float] | None:
    from sfumato.errors import InvalidInput

    if not text:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInput("scales", f"{text!r} is not a list of numbers.", hint="Such as 0.8,1.") from error
    if len(numbers) != count:
        raise InvalidInput("scales", f"{len(numbers)} for {count} files.", hint="Give one for each.")
    return numbers


def _write(adapter: Adapter, output: Path, origin: dict[str, Any], *, quiet: bool = False) -> None:
    """Save with ``origin`` added to the metadata, and print a summary."""
    from sfumato.lora.adapter import norm, padded
    from sfumato.lora.files import save

    adapter = padded(replace(adapter, metadata={**adapter.metadata, **origin}))  # one rank: see `sfumato.lora.files.export`
    save(adapter, output)
    if not quiet:
        typer.echo(f"{output}: {len(adapter.factors)} modules, rank up to {max(adapter.ranks.values())}, norm {norm(adapter):.4g}")
