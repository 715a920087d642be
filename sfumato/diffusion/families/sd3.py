"""Stable Diffusion 3 and 3.5: a transformer on plain latents, two CLIP texts and T5, classifier-free guidance, flow matching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn

from sfumato.diffusion.families.calling import call_pipeline, quiet, size_range, to_cells, to_images
from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.masks import cell_mask
from sfumato.diffusion.objective import FlowMatching
from sfumato.types import Box, GenerateRequest, Image

# As the pipeline has it by default.
T5_TOKENS = 256


class SD3Family:
    """What the engines need to know of one ``StableDiffusion3Pipeline``. Latents are ``[batch, channels, rows, columns]``."""

    per_sample: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")
    lora_prefix: ClassVar[str] = "transformer"
    rounding: ClassVar[float] = -0.5
    # Attention (3.5 medium has a second one), MLP and modulation.
    lora_targets: ClassVar[str] = (
        r"transformer_blocks\.\d+\.(attn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|ff\.net\.0\.proj|ff\.net\.2|ff_context\.net\.0\.proj|ff_context\.net\.2|norm1\.linear|norm1_context\.linear)"
    )

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        self.pipeline = pipeline
        # T5 may be left out to save memory; the pipeline then puts zeros in its place.
        self._tokens = min(T5_TOKENS, int(pipeline.tokenizer_3.model_max_length)) if pipeline.text_encoder_3 is not None else T5_TOKENS
        self.limits = self._limits()
        self.objective = FlowMatching()

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts the velocity."""
        return self.pipeline.transformer

    def _limits(self) -> ModelLimits:
        pipe = self.pipeline
        native = int(pipe.default_sample_size) * pipe.vae_scale_factor
        smallest, largest = size_range(native)
        return ModelLimits(
            grid=pipe.vae_scale_factor * pipe.patch_size,
            min_size=smallest,
            max_size=largest,
            prompt_tokens=self._tokens if pipe.text_encoder_3 is not None else int(pipe.tokenizer_max_length),
            max_steps=200,
            guidance=(1.0, 30.0),
            max_regions=32,
            default_size=native,
            default_steps=28,
            default_guidance=7.0,
            negative_prompts=True,
        )

    def rows_per_sample(self, guidance: float) -> int:
        """Two with classifier-free guidance."""
        return 2 if guidance > 1 else 1

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the T5 text (CLIP's are cut at their own length, as the pipeline does), of CLIP's where there is no T5."""
        tokenizer = self.pipeline.tokenizer if self.pipeline.text_encoder_3 is None else self.pipeline.tokenizer_3
        return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The texts' sequence ``[n, tokens, width]`` and pooled ``[n, width]``."""
        texts = list(prompts)
        sequence, _, pooled, _ = self.pipeline.encode_prompt(
            texts, texts, texts, do_classifier_free_guidance=False, max_sequence_length=self._tokens
        )
        return {"encoder_hidden_states": cast(Tensor, sequence), "pooled_projections": cast(Tensor, pooled)}

    def mask(self, box: Box, width: int, height: int, soft: float = 0.0) -> Tensor:
        """``[channels, rows, columns]``; see `cell_mask`."""
        mask = cell_mask(box, width, height, self.pipeline.vae_scale_factor, soft)
        return mask.repeat(self.pipeline.transformer.config.in_channels, 1, 1)

    @torch.no_grad()
    def paint(self, requests: Sequence[GenerateRequest], on_step: Callable[[int, int], None] | None = None) -> Tensor:
        """See `Family.paint`; the unconditional branch is the empty prompt, no layers are skipped."""
        return call_pipeline(self, requests, on_step, max_sequence_length=self._tokens)

    def from_pictures(self, images: Sequence[Image]) -> tuple[StableDiffusion3Img2ImgPipeline, dict[str, Any]]:
        """See `Family.from_pictures`."""
        height, width = images[0].shape[:2]
        return self._from_pictures, {"image": self.encode_pictures(images), "width": width, "height": height}

    @cached_property
    def _from_pictures(self) -> StableDiffusion3Img2ImgPipeline:
        return quiet(StableDiffusion3Img2ImgPipeline(**self.pipeline.components))

    def masked(self) -> StableDiffusion3InpaintPipeline:
        """See `Family.masked`."""
        return self._masked

    @cached_property
    def _masked(self) -> StableDiffusion3InpaintPipeline:
        return quiet(StableDiffusion3InpaintPipeline(**self.pipeline.components))

    @torch.no_grad()
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """See `Family.decode`."""
        vae = self.pipeline.vae
        cells = latents / vae.config.scaling_factor + vae.config.shift_factor
        return to_images(self.pipeline, vae.decode(cells.to(vae.device, vae.dtype), return_dict=False)[0])

    @torch.no_grad()
    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """See `Family.encode_pictures`."""
        config = self.pipeline.vae.config
        return (to_cells(self.pipeline, images) - config.shift_factor) * config.scaling_factor

    def predict(
        self, noised: Tensor, levels: Tensor, conditions: Mapping[str, Tensor], width: int, height: int, guidance: float
    ) -> Tensor:
        """The velocity ``[rows, channels, rows, columns]`` at sigmas ``levels``; see `Family.predict`."""
        transformer = self.pipeline.transformer
        timestep = levels * self.pipeline.scheduler.config.num_train_timesteps
        return transformer(hidden_states=noised.to(transformer.dtype), timestep=timestep, return_dict=False, **conditions)[0]
