"""FLUX.1: packed tokens, T5 sequence and CLIP pooled text, guidance embedded or distilled away (one forward a step)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline
from torch import Tensor, nn

from sfumato.diffusion.families.calling import call_pipeline, quiet, size_range, to_cells, to_images
from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.masks import cell_mask
from sfumato.diffusion.objective import FlowMatching
from sfumato.types import Box, GenerateRequest, Image

T5_TOKENS = 512


class FluxFamily:
    """What the engines need to know of one ``FluxPipeline``; the pipeline itself stays untouched.

    Latents are FLUX's packed tokens ``[batch, tokens, channels]``: 2x2 latent cells a token, ``channels = 4 * vae channels``.
    """

    per_sample: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep", "guidance", "encoder_hidden_states", "pooled_projections")
    lora_prefix: ClassVar[str] = "transformer"
    rounding: ClassVar[float] = -0.5
    # Attention, MLP and modulation.
    lora_targets: ClassVar[str] = (
        r"(single_)?transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|ff\.net\.0\.proj|ff\.net\.2|ff_context\.net\.0\.proj|ff_context\.net\.2"
        r"|proj_mlp|proj_out|norm\.linear|norm1\.linear|norm1_context\.linear)"
    )

    def __init__(self, pipeline: FluxPipeline) -> None:
        self.pipeline = pipeline
        self.limits = self._limits()
        self.objective = FlowMatching()

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts the velocity."""
        return self.pipeline.transformer

    def _limits(self) -> ModelLimits:
        """Derived from the model's own files: the tokenizer's length, the autoencoder's training size, guidance embeds."""
        pipe = self.pipeline
        native = int(pipe.vae.config.sample_size)
        smallest, largest = size_range(native)
        embeds = bool(pipe.transformer.config.guidance_embeds)
        return ModelLimits(
            grid=pipe.vae_scale_factor * 2,
            min_size=smallest,
            max_size=largest,
            prompt_tokens=min(T5_TOKENS, int(pipe.tokenizer_2.model_max_length)),
            max_steps=200,
            guidance=(0.0, 20.0) if embeds else (1.0, 1.0),
            max_regions=32,
            default_size=native,
            default_steps=50 if embeds else 20,
            default_guidance=3.5 if embeds else 1.0,
        )

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the T5 sequence, the end token included (CLIP's pooled text is cut at its own length, as FLUX does)."""
        return len(self.pipeline.tokenizer_2(prompt, truncation=False, verbose=False).input_ids)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The text as the transformer takes it: sequence ``[n, tokens, width]`` and pooled ``[n, width]``."""
        sequence, pooled, _ = self.pipeline.encode_prompt(list(prompts), max_sequence_length=self.limits.prompt_tokens)
        return {"encoder_hidden_states": cast(Tensor, sequence), "pooled_projections": cast(Tensor, pooled)}

    def mask(self, box: Box, width: int, height: int, soft: float = 0.0) -> Tensor:
        """Packed as latents are, ``[tokens, channels]``; see `cell_mask`."""
        channels = self.pipeline.transformer.config.in_channels // 4
        cells = cell_mask(box, width, height, self.pipeline.vae_scale_factor, soft)
        return FluxPipeline._pack_latents(cells.repeat(1, channels, 1, 1), 1, channels, *cells.shape)[0]

    def rows_per_sample(self, guidance: float) -> int:
        """One: guidance is embedded or distilled away."""
        return 1

    @torch.no_grad()
    def paint(self, requests: Sequence[GenerateRequest], on_step: Callable[[int, int], None] | None = None) -> Tensor:
        """See `Family.paint`."""
        return call_pipeline(self, requests, on_step, max_sequence_length=self.limits.prompt_tokens)

    def from_pictures(self, images: Sequence[Image]) -> tuple[FluxImg2ImgPipeline, dict[str, Any]]:
        """See `Family.from_pictures`."""
        height, width = images[0].shape[:2]
        cells = FluxPipeline._unpack_latents(self.encode_pictures(images), height, width, self.pipeline.vae_scale_factor)
        return self._from_pictures, {"image": cells, "width": width, "height": height}

    @cached_property
    def _from_pictures(self) -> FluxImg2ImgPipeline:
        return quiet(FluxImg2ImgPipeline(**self.pipeline.components))

    def masked(self) -> FluxInpaintPipeline:
        """See `Family.masked`."""
        return self._masked

    @cached_property
    def _masked(self) -> FluxInpaintPipeline:
        return quiet(FluxInpaintPipeline(**self.pipeline.components))

    @torch.no_grad()
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """Packed latents ``[batch, tokens, channels]`` to pictures, as the pipeline itself does it."""
        pipe = self.pipeline
        cells = FluxPipeline._unpack_latents(latents, height, width, pipe.vae_scale_factor)
        cells = (cells / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).to(pipe.vae.device, pipe.vae.dtype)
        return to_images(pipe, pipe.vae.decode(cells, return_dict=False)[0])

    @torch.no_grad()
    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """Pictures of one size to the packed latents ``[batch, tokens, channels]`` that `decode` takes (the posterior's mode)."""
        config = self.pipeline.vae.config
        cells = (to_cells(self.pipeline, images) - config.shift_factor) * config.scaling_factor
        return FluxPipeline._pack_latents(cells, *cells.shape)

    def predict(
        self, noised: Tensor, levels: Tensor, conditions: Mapping[str, Tensor], width: int, height: int, guidance: float
    ) -> Tensor:
        """The velocity ``[rows, tokens, channels]`` at sigmas ``levels``; see `Family.predict`."""
        transformer = self.pipeline.transformer
        noised = noised.to(transformer.dtype)
        cell = self.pipeline.vae_scale_factor * 2
        text = conditions["encoder_hidden_states"]
        embeds = transformer.config.guidance_embeds
        return transformer(
            hidden_states=noised,
            timestep=levels,
            guidance=torch.full([len(noised)], guidance, device=noised.device, dtype=torch.float32) if embeds else None,
            img_ids=FluxPipeline._prepare_latent_image_ids(1, height // cell, width // cell, noised.device, noised.dtype),
            txt_ids=torch.zeros(text.shape[1], 3, device=noised.device, dtype=noised.dtype),
            return_dict=False,
            **conditions,
        )[0]
