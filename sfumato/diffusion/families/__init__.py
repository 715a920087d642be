"""The model families: one file each with what differs between pipelines; `catalog` lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sfumato.diffusion.families.catalog import described, described_of
from sfumato.diffusion.families.family import Family as Family

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def family_class(pipeline_class: str) -> type[Family]:
    """The family of a pipeline class of this name.

    Raises:
        InvalidInput: no family knows it.
    """
    return cast(type[Family], described(pipeline_class))


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family that knows this pipeline.

    Raises:
        InvalidInput: no family knows its class.
    """
    return cast(type[Family], described_of(type(pipeline)))(pipeline)
