"""``sfumato convert``: published scorer weights to folders that are safe to load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="The published file: .pt, .pth or .safetensors.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; it must not exist or must be empty.")],
    layout: Annotated[str, typer.Option("--as", help="Which scorer's weights these are: aesthetic, hpsv2 or mps.")],
) -> None:
    """Convert a scorer's published weights to a folder of safetensors, once. Nothing in the file is executed.

    aesthetic: sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor.
    hpsv2: HPS_v2.1_compressed.pt of xswu/HPSv2. mps: MPS_overall_checkpoint.pth of Kwai-Kolors/MPS.

    Example: sfumato convert HPS_v2.1_compressed.pt models/hpsv2 --as hpsv2
    """
    from services.scoring import conversion

    conversion.convert(source, target, layout)
    typer.echo(f"{target}: name it for the metric {layout}, with --model {layout}={target} or in a spec under score.models")
