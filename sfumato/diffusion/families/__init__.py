"""One model family, one file: what differs between pipelines and nothing else."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from sfumato.diffusion.families.family import Family as Family
from sfumato.diffusion.families.flux import FluxFamily as FluxFamily
from sfumato.diffusion.families.sd import SDFamily as SDFamily
from sfumato.diffusion.families.sd3 import SD3Family as SD3Family
from sfumato.diffusion.families.sdxl import SDXLFamily as SDXLFamily
from sfumato.errors import InvalidInput

FAMILIES: dict[type[DiffusionPipeline], Any] = {
    FluxPipeline: FluxFamily,
    StableDiffusionPipeline: SDFamily,
    StableDiffusionXLPipeline: SDXLFamily,
    StableDiffusion3Pipeline: SD3Family,
}
SUPPORTED = ", ".join(pipeline.__name__ for pipeline in FAMILIES)


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family that knows this pipeline.

    Raises:
        InvalidInput: no family knows its class.
    """
    for known, family in FAMILIES.items():
        if isinstance(pipeline, known):
            return family(pipeline)
    raise InvalidInput("model", f"{type(pipeline).__name__} is of no supported family.", hint=f"Supported: {SUPPORTED}.")
