"""The model families by the class of their pipeline: a new family is one file and one entry here.

A family's file can be imported without PyTorch. It is imported when the family is asked for.
"""

from __future__ import annotations

from importlib import import_module

from sfumato.diffusion.families.description import Description
from sfumato.errors import InvalidInput

FAMILIES: dict[str, str] = {
    "FluxPipeline": "sfumato.diffusion.families.flux:FluxFamily",
    "StableDiffusionPipeline": "sfumato.diffusion.families.sd:SDFamily",
    "StableDiffusionXLPipeline": "sfumato.diffusion.families.sdxl:SDXLFamily",
    "StableDiffusion3Pipeline": "sfumato.diffusion.families.sd3:SD3Family",
}

DENOISERS = ("transformer", "unet")
"""The names that diffusers' pipelines have for their denoiser."""


def described(pipeline_class: str) -> type[Description]:
    """The family of a pipeline class of this name.

    Raises:
        InvalidInput: no family knows it.
    """
    if pipeline_class not in FAMILIES:
        raise InvalidInput("model", f"{pipeline_class} is of no supported family.", hint=f"Supported: {supported()}.")
    module, _, name = FAMILIES[pipeline_class].partition(":")
    return getattr(import_module(module), name)


def described_of(kind: type) -> type[Description]:
    """The family of a pipeline's class, or of the class it derives from.

    Raises:
        InvalidInput: no family knows it.
    """
    names = [each.__name__ for each in kind.__mro__]
    return described(next((name for name in names if name in FAMILIES), names[0]))


def families() -> list[type[Description]]:
    """All families, in the order of the catalog."""
    return [described(name) for name in FAMILIES]


def supported() -> str:
    """The supported pipeline classes, for messages."""
    return ", ".join(FAMILIES)
