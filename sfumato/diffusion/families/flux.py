"""FLUX.1: packed tokens, T5 sequence and CLIP pooled text, guidance embedded or distilled away (one forward a step)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.objective import FlowMatching
from sfumato.types import Box, GenerateRequest, Image

T5_TOKENS = 512
SMALL = 256


class FluxFamily:
    """What the engines need to know of one ``FluxPipeline``; the pipeline itself stays untouched.

    Latents are FLUX's packed tokens ``[batch, tokens, channels]``: 2x2 latent cells a token, ``channels = 4 * vae channels``.
    """

    per_sample: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep", "guidance")
    lora_prefix: ClassVar[str] = "transformer"
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
        """Derived from the model's own files: the tokenizer's length, the autoencoder's training size, guidance embeds.

        A small model is held to the one size it was trained at; a large one may go from a quarter to twice of it.
        """
        pipe = self.pipeline
        native = int(pipe.vae.config.sample_size)
        fixed = native < SMALL
        embeds = bool(pipe.transformer.config.guidance_embeds)
        return ModelLimits(
            grid=pipe.vae_scale_factor * 2,
            min_size=native if fixed else max(SMALL, native // 4),
            max_size=native if fixed else 2 * native,
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

    def mask(self, box: Box, width: int, height: int) -> Tensor:
        """One where ``box`` (pixels) touches a latent cell, packed as latents are: ``[tokens, channels]``.

        Rounded outwards, so a box of one pixel still covers one cell.
        """
        scale = self.pipeline.vae_scale_factor
        channels = self.pipeline.transformer.config.in_channels // 4
        rows, columns = height // scale, width // scale
        x1, y1, x2, y2 = box
        cells = torch.zeros(1, channels, rows, columns)
        cells[..., y1 // scale : -(-y2 // scale), x1 // scale : -(-x2 // scale)] = 1
        return FluxPipeline._pack_latents(cells, 1, channels, rows, columns)[0]

    @torch.no_grad()
    def paint(self, requests: Sequence[GenerateRequest], on_step: Callable[[], None] | None = None) -> Tensor:
        """Call the pipeline for requests of one size, number of steps and guidance; final latents ``[batch, tokens, channels]``.

        Every sample's noise comes from its own generator on the CPU, so it depends on its seed alone.
        """
        first = requests[0]

        def step_ended(*arguments: Any) -> Any:
            if on_step is not None:
                on_step()
            return arguments[-1]  # the loop's tensors, unchanged

        return self.pipeline(
            prompt=[request.prompt for request in requests],
            width=first.width,
            height=first.height,
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            max_sequence_length=self.limits.prompt_tokens,
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            output_type="latent",
            callback_on_step_end=step_ended,
            return_dict=False,
        )[0]

    @torch.no_grad()
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """Packed latents ``[batch, tokens, channels]`` to pictures, as the pipeline itself does it."""
        pipe = self.pipeline
        cells = FluxPipeline._unpack_latents(latents, height, width, pipe.vae_scale_factor)
        cells = (cells / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).to(pipe.vae.device, pipe.vae.dtype)
        pictures = pipe.image_processor.postprocess(pipe.vae.decode(cells, return_dict=False)[0], output_type="pil")
        return [np.asarray(picture, dtype=np.uint8) for picture in cast(list[Any], pictures)]

    @torch.no_grad()
    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """Pictures of one size to the packed latents ``[batch, tokens, channels]`` that `decode` takes (the posterior's mode)."""
        pipe = self.pipeline
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(pipe.vae.device, pipe.vae.dtype) / 127.5 - 1
        cells = (pipe.vae.encode(pixels).latent_dist.mode() - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
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
