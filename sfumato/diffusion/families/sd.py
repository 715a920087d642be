"""Stable Diffusion 1.5 and 2.1: a UNet on plain latents, one CLIP text, classifier-free guidance; predicts noise or velocity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from sfumato.diffusion.families.calling import call_pipeline, quiet, size_range, to_cells, to_images
from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.masks import cell_mask
from sfumato.diffusion.objective import objective_of
from sfumato.types import Box, GenerateRequest, Image


class UNetFamily:
    """What Stable Diffusion and SDXL share. Latents are ``[batch, channels, rows, columns]``."""

    # text_embeds and time_ids are SDXL's, timestep_cond is that of models with distilled guidance.
    per_sample: ClassVar[tuple[str, ...]] = ("sample", "timestep", "timestep_cond", "encoder_hidden_states", "text_embeds", "time_ids")
    lora_prefix: ClassVar[str] = "unet"
    rounding: ClassVar[float] = 0.5
    # Attention and MLP of every transformer block.
    lora_targets: ClassVar[str] = (
        r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+\.transformer_blocks\.\d+"
        r"\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.0\.proj|ff\.net\.2)"
    )
    default_guidance: ClassVar[float] = 7.5

    def __init__(self, pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> None:
        # Typed loosely: what both classes have, diffusers declares on each by itself.
        self.pipeline: Any = pipeline
        self.limits = self._limits()
        self.objective = objective_of(pipeline.scheduler)

    @property
    def denoiser(self) -> nn.Module:
        """The UNet."""
        return self.pipeline.unet

    def _limits(self) -> ModelLimits:
        pipe = self.pipeline
        sample = pipe.unet.config.sample_size
        native = (sample if isinstance(sample, int) else min(sample)) * pipe.vae_scale_factor
        smallest, largest = size_range(native)
        return ModelLimits(
            grid=pipe.vae_scale_factor,
            min_size=smallest,
            max_size=largest,
            prompt_tokens=int(pipe.tokenizer.model_max_length),
            max_steps=200,
            guidance=(1.0, 30.0),
            max_regions=32,
            default_size=native,
            default_steps=50,
            default_guidance=self.default_guidance,
            negative_prompts=pipe.unet.config.time_cond_proj_dim is None,
        )

    def rows_per_sample(self, guidance: float) -> int:
        """Two with classifier-free guidance; a UNet with distilled guidance takes it as an input instead."""
        return 2 if guidance > 1 and self.pipeline.unet.config.time_cond_proj_dim is None else 1

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the CLIP text with its begin and end."""
        return len(self.pipeline.tokenizer(prompt, truncation=False, verbose=False).input_ids)

    def mask(self, box: Box, width: int, height: int, soft: float = 0.0) -> Tensor:
        """``[channels, rows, columns]``; see `cell_mask`."""
        mask = cell_mask(box, width, height, self.pipeline.vae_scale_factor, soft)
        return mask.repeat(self.pipeline.unet.config.in_channels, 1, 1)

    @torch.no_grad()
    def paint(self, requests: Sequence[GenerateRequest], on_step: Callable[[int, int], None] | None = None) -> Tensor:
        """See `Family.paint`; the unconditional branch is the empty prompt."""
        whole: Any = self  # what a family has besides, SD and SDXL bring themselves
        return call_pipeline(whole, requests, on_step)

    def predict(
        self, noised: Tensor, levels: Tensor, conditions: Mapping[str, Tensor], width: int, height: int, guidance: float
    ) -> Tensor:
        """Noise or velocity ``[rows, channels, rows, columns]`` at timesteps ``levels``; see `Family.predict`."""
        unet = self.pipeline.unet
        noised = noised.to(unet.dtype)
        arguments = self._arguments(conditions, width, height)
        if unet.config.time_cond_proj_dim is not None:
            scale = torch.full([len(noised)], guidance - 1)
            embedded = self.pipeline.get_guidance_scale_embedding(scale, embedding_dim=unet.config.time_cond_proj_dim)
            arguments["timestep_cond"] = embedded.to(noised)
        return unet(noised, levels, return_dict=False, **arguments)[0]

    def _arguments(self, conditions: Mapping[str, Tensor], width: int, height: int) -> dict[str, Any]:
        """The conditions as the UNet's forward takes them."""
        return dict(conditions)


class SDFamily(UNetFamily):
    """What the engines need to know of one ``StableDiffusionPipeline``."""

    def from_pictures(self, images: Sequence[Image]) -> tuple[Any, dict[str, Any]]:
        """See `Family.from_pictures`."""
        return self._from_pictures, {"image": self.encode_pictures(images)}

    @cached_property
    def _from_pictures(self) -> Any:
        return quiet(StableDiffusionImg2ImgPipeline(**self.pipeline.components, requires_safety_checker=False))

    def masked(self) -> Any:
        """See `Family.masked`."""
        return self._masked

    @cached_property
    def _masked(self) -> Any:
        return quiet(StableDiffusionInpaintPipeline(**self.pipeline.components, requires_safety_checker=False))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The text's sequence ``[n, tokens, width]``."""
        sequence, _ = self.pipeline.encode_prompt(list(prompts), self.pipeline._execution_device, 1, False)
        return {"encoder_hidden_states": sequence}

    @torch.no_grad()
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """Latents to pictures; a safety checker the pipeline carries blackens what it always does."""
        pipe = self.pipeline
        pixels = pipe.vae.decode(latents.to(pipe.vae.device, pipe.vae.dtype) / pipe.vae.config.scaling_factor, return_dict=False)[0]
        pixels, unsafe = pipe.run_safety_checker(pixels, pixels.device, pixels.dtype)
        return to_images(pipe, pixels, None if unsafe is None else [not flagged for flagged in unsafe])

    @torch.no_grad()
    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """See `Family.encode_pictures`."""
        return to_cells(self.pipeline, images) * self.pipeline.vae.config.scaling_factor
