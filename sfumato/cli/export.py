"""``sfumato export``: a registered version as files for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.models import AsJson, Local, Reference, Runs, Server, opened, settings_of


def export(
    version: Reference,
    to: Annotated[Path, typer.Option(help="The folder to write; it must not exist or must be empty.")],
    base: Annotated[str, typer.Option(help="The base model: vista, a name on the hub, or a folder (default: the base's name).")] = "",
    licence: Annotated[
        str, typer.Option("--license", help="The card's licence, by its name on the hub; apache-2.0 for Vista, else other.", metavar="ID")
    ] = "",
    licence_name: Annotated[str, typer.Option("--license-name", help="Name of a licence that is not a standard one.")] = "",
    licence_link: Annotated[str, typer.Option("--license-link", help="Address of its text.")] = "",
    precision: Annotated[str, typer.Option(help="Precision of the fused model: float32 or bfloat16.")] = "float32",
    as_json: AsJson = False,
    runs: Runs = None,
    server: Server = "",
    local: Local = False,
) -> None:
    """Write a version for other programs: the fused model for diffusers, the adapter in each layout, a workflow for ComfyUI, a model
    card, and the files that a Bento is built from. Every part is loaded back and compared.

    Example: sfumato export production --to artaug

    Example: cd artaug && bentoml build
    """
    from orchestrator.recipes.catalog import cards
    from sfumato.errors import InvalidInput
    from sfumato.export.card import Licence
    from sfumato.export.folder import export_version
    from sfumato.runtime.device import precision_named
    from sfumato.runtime.models.references import VISTA, model_folder
    from sfumato.runtime.settings import Settings

    if licence_link and not licence_link.startswith(("https://", "http://")):
        raise InvalidInput("license-link", f"{licence_link!r} is not an address.", hint="Such as https://example.org/LICENSE.md")
    dtype = precision_named(precision)
    with opened(settings_of(runs), server, local) as registry:
        name = base or registry.get(version).base.name
        folder = model_folder(name, "generator", Settings(model_folders=True))  # the user of this command may read its folders
        told = Licence(licence or ("apache-2.0" if name == VISTA else "other"), licence_name, licence_link)
        made = export_version(registry, version, to, folder, licence=told, methods=cards(), dtype=dtype)
    if as_json:
        report = {"version": made.version, "folder": str(to), "files": dict(made.files), "differences": dict(made.differences)}
        typer.echo(json.dumps(report | {"left_out": dict(made.left_out)}, indent=1))
        return
    typer.echo(f"{to}: version {made.version[:12]}")
    for file, words in made.files.items():
        typer.echo(f"  {file:<28} {words}")
    for file, reason in made.left_out.items():
        typer.echo(f"  {file:<28} not written: {reason}")
    for layout, difference in made.differences.items():
        typer.echo(f"  {layout} loaded back: updates differ by {difference:.1e} at most")
