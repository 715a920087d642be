"""Stable Diffusion XL: as Stable Diffusion, with two CLIP texts, a pooled text and the picture's size as conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline
from torch import Tensor

from sfumato.diffusion.families.calling import quiet, to_cells, to_images
from sfumato.diffusion.families.sd import UNetFamily
from sfumato.types import Image


class SDXLFamily(UNetFamily):
    """What the engines need to know of one ``StableDiffusionXLPipeline``."""

    default_guidance: ClassVar[float] = 5.0

    def from_pictures(self, images: Sequence[Image]) -> tuple[Any, dict[str, Any]]:
        """See `Family.from_pictures`."""
        return self._from_pictures, {"image": self.encode_pictures(images)}

    @cached_property
    def _from_pictures(self) -> Any:
        return self._of_same_parts(StableDiffusionXLImg2ImgPipeline)

    def masked(self) -> Any:
        """See `Family.masked`."""
        return self._masked

    @cached_property
    def _masked(self) -> Any:
        return self._of_same_parts(StableDiffusionXLInpaintPipeline)

    def _of_same_parts(self, kind: Any) -> Any:
        zeros = self.pipeline.config.force_zeros_for_empty_prompt
        return quiet(kind(**self.pipeline.components, force_zeros_for_empty_prompt=zeros, add_watermarker=False))

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the longer of both CLIP texts, with begin and end."""
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        return max(len(tokenizer(prompt, truncation=False, verbose=False).input_ids) for tokenizer in tokenizers)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The texts' sequence ``[n, tokens, width]`` and pooled ``[n, width]``."""
        sequence, _, pooled, _ = self.pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return {"encoder_hidden_states": sequence, "text_embeds": pooled}

    def _arguments(self, conditions: Mapping[str, Tensor], width: int, height: int) -> dict[str, Any]:
        """Pooled text and size go into one dictionary; the picture is neither cropped nor rescaled."""
        sequence, pooled = conditions["encoder_hidden_states"], conditions["text_embeds"]
        size = (height, width)
        times = self.pipeline._get_add_time_ids(size, (0, 0), size, sequence.dtype, text_encoder_projection_dim=pooled.shape[-1])
        times = times.to(sequence.device).repeat(len(sequence), 1)
        return {"encoder_hidden_states": sequence, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": times}}

    @torch.no_grad()
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """Latents to pictures, with the pipeline's invisible watermark where it has one.

        SDXL's autoencoder overflows in float16: where it says so, it works in float32 meanwhile.
        """
        pipe = self.pipeline
        dtype = pipe.vae.dtype
        upcast = dtype == torch.float16 and pipe.vae.config.force_upcast
        if upcast:
            pipe.vae.to(torch.float32)
        mean, deviation = self._statistics(latents)
        cells = latents * deviation / pipe.vae.config.scaling_factor + mean
        pixels = pipe.vae.decode(cells.to(pipe.vae.device, pipe.vae.dtype), return_dict=False)[0]
        if upcast:
            pipe.vae.to(dtype)
        if pipe.watermark is not None:
            pixels = pipe.watermark.apply_watermark(pixels)
        return to_images(pipe, pixels)

    @torch.no_grad()
    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """See `Family.encode_pictures`."""
        cells = to_cells(self.pipeline, images)
        mean, deviation = self._statistics(cells)
        return (cells - mean) * self.pipeline.vae.config.scaling_factor / deviation

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation ``[1, channels, 1, 1]`` of the autoencoder's latents where it knows them, else 0 and 1."""
        config = self.pipeline.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return like.new_zeros(1, 1, 1, 1), like.new_ones(1, 1, 1, 1)
        mean, deviation = (like.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return mean, deviation
