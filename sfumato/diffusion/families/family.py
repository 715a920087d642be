"""What every model family offers; engines, hook and trainer know nothing else of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.objective import Objective
from sfumato.types import Box, GenerateRequest, Image


class Family(Protocol):
    """One pipeline and what differs between families; the pipeline itself stays untouched.

    "Latents" have the family's own layout, the same everywhere: what `paint` returns, `decode` takes, the masks have and the
    denoiser answers. ``[batch, tokens, channels]`` where the pipeline packs them (FLUX), else ``[batch, channels, rows, columns]``.
    """

    # A regular expression: the full names, from the denoiser, of the linears a LoRA may sit on.
    lora_targets: ClassVar[str]
    # What diffusers' LoRA keys call the denoiser: "transformer" or "unet".
    lora_prefix: ClassVar[str]
    # The arguments of the denoiser's forward with a row per sample; the latents come first.
    per_sample: ClassVar[tuple[str, ...]]
    # What the image-to-image pipeline does to a number of steps that is no whole one: half a step up is +0.5, half down is -0.5.
    rounding: ClassVar[float]

    @property
    def pipeline(self) -> DiffusionPipeline:
        """The unmodified diffusers pipeline."""
        ...

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts noise or velocity: a transformer or a UNet."""
        ...

    @property
    def limits(self) -> ModelLimits:
        """What may be asked of the model, and its defaults."""
        ...

    @property
    def objective(self) -> Objective:
        """What the denoiser was trained to predict."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the prompt, the model's begin and end tokens included."""
        ...

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts as the denoiser's forward takes them: argument name to ``[prompts, ...]``."""
        ...

    def mask(self, box: Box, width: int, height: int, soft: float = 0.0) -> Tensor:
        """M_i in the layout of one sample's latents: one where ``box`` (pixels) touches a latent cell; `cell_mask` has the rest."""
        ...

    def rows_per_sample(self, guidance: float) -> int:
        """Rows of a plain forward for each sample: two with classifier-free guidance, the unconditional ones first; else one."""
        ...

    def paint(self, requests: Sequence[GenerateRequest], on_step: Callable[[int, int], None] | None = None) -> Tensor:
        """Call the pipeline for requests of one size, number of steps and guidance; final latents ``[batch, ...]``.

        ``on_step`` is told ``(steps done, steps of the scheduler)``; some schedulers take a step or more beyond those asked for.
        """
        ...

    def from_pictures(self, images: Sequence[Image]) -> tuple[DiffusionPipeline, dict[str, Any]]:
        """The image-to-image pipeline of the same parts, and what it is to be given of pictures of one size that it starts from."""
        ...

    def masked(self) -> DiffusionPipeline:
        """The pipeline of the same parts that paints only what a mask marks."""
        ...

    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """Latents ``[batch, ...]`` to pictures, as the pipeline itself does it."""
        ...

    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """Pictures of one size to the latents ``[batch, ...]`` that `decode` takes (the posterior's mode)."""
        ...

    def predict(
        self, noised: Tensor, levels: Tensor, conditions: Mapping[str, Tensor], width: int, height: int, guidance: float
    ) -> Tensor:
        """The denoiser's answer ``[rows, ...]`` to ``noised`` latents ``[rows, ...]``, with gradient.

        Args:
            noised: from ``objective.noised``.
            levels: ``[rows]``, from ``objective.levels``.
            conditions: rows of what `encode` gives.
            width: of the pictures, in pixels.
            height: likewise.
            guidance: embedded guidance, where the model has it; a model with classifier-free guidance answers for the prompt
                alone and does not read it.
        """
        ...
