"""One model family, one file: what differs between pipelines and nothing else."""

from __future__ import annotations

from diffusers import DiffusionPipeline, FluxPipeline

from sfumato.diffusion.families.family import Family as Family
from sfumato.diffusion.families.flux import FluxFamily
from sfumato.errors import InvalidInput


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family that knows this pipeline.

    Raises:
        InvalidInput: no family knows its class.
    """
    if isinstance(pipeline, FluxPipeline):
        return FluxFamily(pipeline)
    raise InvalidInput("model", f"{type(pipeline).__name__} is of no supported family.", hint="Supported: FluxPipeline.")
