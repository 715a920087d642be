"""A model family with a loaded pipeline; engines, hook and trainer use a pipeline through this class only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sfumato.diffusion.families.calling import call_pipeline, quiet
from sfumato.diffusion.families.description import Description
from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.samplers import sampler_name
from sfumato.types import Box, GenerateRequest, Image

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from sfumato.diffusion.parameterization import Parameterization

Given = ParamSpec("Given")
Result = TypeVar("Result")


def without_gradients(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorates a function to run under ``torch.no_grad``; PyTorch is imported at the first call."""

    @wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        import torch

        with torch.no_grad():
            return function(*args, **kwargs)

    return called


class Family(Description):
    """One pipeline and what differs between families; the pipeline itself stays untouched.

    "Latents" have the family's own layout, the same everywhere: what `paint` returns, `decode` takes, the masks have and the
    denoiser answers. ``[batch, tokens, channels]`` where the pipeline packs them (FLUX), else ``[batch, channels, rows, columns]``.
    """

    limits: ModelLimits
    """What may be asked of the model, and its defaults."""
    parameterization: Parameterization
    """What the denoiser was trained to predict."""

    @classmethod
    def pipeline_type(cls) -> Any:
        """The class of the family's pipelines."""
        import diffusers

        return getattr(diffusers, cls.pipeline_class)

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        # Typed loosely: diffusers declares what pipelines share on each class.
        self.pipeline: Any = pipeline
        self.limits = replace(self._limits(), sampler=sampler_name(self.pipeline.scheduler))
        self.parameterization = self._parameterization()

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts noise or velocity: a transformer or a UNet."""
        return getattr(self.pipeline, self.denoiser_part)

    @property
    def changes_autoencoder_precision(self) -> bool:
        """Whether the pipelines turn the autoencoder to float32 and back while they encode or decode a picture."""
        return False

    @abstractmethod
    def _limits(self) -> ModelLimits:
        """See `limits`; from the model's own files."""

    def _parameterization(self) -> Parameterization:
        """See `parameterization`; read from the scheduler."""
        from sfumato.diffusion.parameterization import parameterization_of

        return parameterization_of(self.pipeline.scheduler)

    @abstractmethod
    def count_tokens(self, prompt: str) -> int:
        """Tokens of the prompt, the model's begin and end tokens included."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts as the denoiser's forward takes them: argument name to ``[prompts, ...]``."""

    def mask(self, box: Box, width: int, height: int, soft: float = 0.0) -> Tensor:
        """M_i in the layout of one sample's latents: one where ``box`` (pixels) touches a latent cell; `cell_mask` has the rest."""
        config: Any = self.denoiser.config
        return self._cells(box, width, height, soft).repeat(config.in_channels, 1, 1)

    def _cells(self, box: Box, width: int, height: int, soft: float) -> Tensor:
        """`cell_mask` over the model's latent cells."""
        from sfumato.diffusion.masks import cell_mask

        return cell_mask(box, width, height, self.pipeline.vae_scale_factor, soft)

    def rows_per_sample(self, guidance: float) -> int:
        """Rows of a plain forward for each sample: two with classifier-free guidance, the unconditional ones first; else one."""
        return 2 if self.classifier_free and guidance > 1 else 1

    @without_gradients
    def paint(self, requests: Sequence[GenerateRequest], on_step: Callable[[int, int], None] | None = None) -> Tensor:
        """Call the pipeline for requests of one size, number of steps and guidance; final latents ``[batch, ...]``.

        ``on_step`` is called with ``(steps done, steps of the scheduler)``; some schedulers take more steps than were asked for.
        """
        return call_pipeline(self, requests, on_step, **self._call_options())

    def _call_options(self) -> dict[str, Any]:
        """Further arguments of every call of the pipeline."""
        return {}

    def from_pictures(self, images: Sequence[Image]) -> tuple[DiffusionPipeline, dict[str, Any]]:
        """The image-to-image pipeline of the same parts, and its arguments for pictures of one size that it starts from."""
        return self._from_pictures, self._start(images)

    def _start(self, images: Sequence[Image]) -> dict[str, Any]:
        """The arguments of the image-to-image pipeline for its starting pictures."""
        return {"image": self.encode_pictures(images)}

    def masked(self) -> DiffusionPipeline:
        """The pipeline of the same parts that paints only where a mask is set."""
        return self._masked

    @cached_property
    def _from_pictures(self) -> DiffusionPipeline:
        return self._of_same_parts(self.image_to_image)

    @cached_property
    def _masked(self) -> DiffusionPipeline:
        return self._of_same_parts(self.inpainting)

    def _of_same_parts(self, name: str) -> DiffusionPipeline:
        import diffusers

        return quiet(getattr(diffusers, name)(**self.pipeline.components, **self._construction()))

    def _construction(self) -> dict[str, Any]:
        """Arguments of the pipelines' constructors beside the parts."""
        return {}

    @abstractmethod
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """Latents ``[batch, ...]`` to pictures, as the pipeline itself does it."""

    @abstractmethod
    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """Pictures of one size to the latents ``[batch, ...]`` that `decode` takes (the posterior's mode)."""

    @abstractmethod
    def predict(self, noised: Tensor, levels: Tensor, conditions: Mapping[str, Tensor], width: int, height: int, guidance: float) -> Tensor:
        """The denoiser's answer ``[rows, ...]`` to ``noised`` latents ``[rows, ...]``, with gradient.

        Args:
            noised: from ``parameterization.noised``.
            levels: ``[rows]``, from ``parameterization.levels``.
            conditions: rows of what `encode` gives.
            width: of the pictures, in pixels.
            height: likewise.
            guidance: embedded guidance, where the model has it; a model with classifier-free guidance answers for the prompt
                alone and does not read it.
        """
