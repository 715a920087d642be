"""What is known of a model family without loading a pipeline. This module and every family's file can be imported without PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from sfumato.diffusion.families.comfyui import ComfyUINodes
from sfumato.lora.kohya_names import KohyaNames
from sfumato.sizes import Blocks, ModelSize


class Description(ABC):
    """The facts of a family that hold for all its models; `sfumato.diffusion.families.family.Family` adds a loaded pipeline."""

    # diffusers' classes: the pipeline, its denoiser, and the pipelines of the same parts that start from a picture and paint in a mask.
    pipeline_class: ClassVar[str]
    denoiser_class: ClassVar[str]
    image_to_image: ClassVar[str]
    inpainting: ClassVar[str]
    # The denoiser's name in the pipeline and in diffusers' LoRA keys: one of `catalog.DENOISERS`.
    denoiser_part: ClassVar[str]
    # A regular expression: the full names, from the denoiser, of the linears a LoRA may sit on.
    lora_targets: ClassVar[str]
    # The configuration of a small denoiser that has every kind of module of the family; what is left out is diffusers' default.
    outline: ClassVar[Mapping[str, Any]] = {}
    # The arguments of the denoiser's forward with a row per sample; the latents come first.
    per_sample: ClassVar[tuple[str, ...]]
    # What the image-to-image pipeline does to a number of steps that is not whole: half a step up is +0.5, half down is -0.5.
    rounding: ClassVar[float]
    # Whether guidance above 1 takes an unconditional row beside every picture's.
    classifier_free: ClassVar[bool]
    # How ComfyUI loads the family's models; None: its loaders do not know the family.
    comfyui: ClassVar[ComfyUINodes | None] = None
    # Sizes of published models, by their name on the hub.
    published: ClassVar[Mapping[str, ModelSize]] = {}

    @classmethod
    @abstractmethod
    def blocks(cls, config: Mapping[str, Any], vae_scale: int) -> tuple[Blocks, ...]:
        """The denoiser's blocks.

        Args:
            config: the denoiser's ``config.json``.
            vae_scale: pixels along the side of a latent cell.
        """

    @classmethod
    def kohya(cls, config: Mapping[str, Any]) -> KohyaNames | None:
        """The names of this denoiser's modules in kohya's layout; None where diffusers reads no such layout of the family.

        Args:
            config: the denoiser's configuration.
        """
        return None

    @classmethod
    def kohya_dialects(cls) -> tuple[KohyaNames, ...]:
        """All names of modules that files of this family in kohya's layout may have."""
        return ()
