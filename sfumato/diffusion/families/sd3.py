"""Stable Diffusion 3 and 3.5: a transformer on plain latents, two CLIP texts and T5, classifier-free guidance, flow matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sfumato.diffusion.families.calling import size_range, to_cells, to_images
from sfumato.diffusion.families.comfyui import ComfyUINodes
from sfumato.diffusion.families.family import Family, without_gradients
from sfumato.diffusion.limits import ModelLimits
from sfumato.sizes import CLIP_G_TEXT, CLIP_L_TEXT, T5_XXL, VAE_16, Blocks, ModelSize
from sfumato.types import Image

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.diffusion.parameterization import FlowMatching

# As the pipeline has it by default.
T5_TOKENS = 256
CLIP_TOKENS = 77


class SD3Family(Family):
    """What the engines need to know of one ``StableDiffusion3Pipeline``. Latents are ``[batch, channels, rows, columns]``."""

    pipeline_class: ClassVar[str] = "StableDiffusion3Pipeline"
    denoiser_class: ClassVar[str] = "SD3Transformer2DModel"
    image_to_image: ClassVar[str] = "StableDiffusion3Img2ImgPipeline"
    inpainting: ClassVar[str] = "StableDiffusion3InpaintPipeline"
    denoiser_part: ClassVar[str] = "transformer"
    classifier_free: ClassVar[bool] = True
    per_sample: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")
    rounding: ClassVar[float] = -0.5
    # Attention (3.5 medium has a second one), MLP and modulation.
    lora_targets: ClassVar[str] = (
        r"transformer_blocks\.\d+\.(attn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|ff\.net\.0\.proj|ff\.net\.2|ff_context\.net\.0\.proj|ff_context\.net\.2|norm1\.linear|norm1_context\.linear)"
    )

    outline: ClassVar[Mapping[str, Any]] = {
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_projection_dim": 16,
        "dual_attention_layers": [0],  # of 3.5 medium
    }
    comfyui: ClassVar[ComfyUINodes | None] = ComfyUINodes(
        "EmptySD3LatentImage", {"stabilityai/stable-diffusion-3-medium-diffusers": "sd3_medium_incl_clips_t5xxlfp16.safetensors"}
    )
    published: ClassVar[Mapping[str, ModelSize]] = {
        # transformer/config.json: 24 blocks of 24 heads of 64.
        "stabilityai/stable-diffusion-3-medium-diffusers": ModelSize(
            {
                "transformer": 2_028_328_000,
                "text_encoder": CLIP_L_TEXT + 768 * 768,
                "text_encoder_2": CLIP_G_TEXT,
                "text_encoder_3": T5_XXL,
                "vae": VAE_16,
            },
            (Blocks(24, 1536, 16, T5_TOKENS + CLIP_TOKENS),),
            256,
            classifier_free=True,
            gated=True,
        ),
    }

    @classmethod
    def blocks(cls, config: Mapping[str, Any], vae_scale: int) -> tuple[Blocks, ...]:
        """Joint blocks of picture and text."""
        width = config["num_attention_heads"] * config["attention_head_dim"]
        return (Blocks(config["num_layers"], width, config["patch_size"] * vae_scale, T5_TOKENS + CLIP_TOKENS),)

    def _parameterization(self) -> FlowMatching:
        from sfumato.diffusion.parameterization import FlowMatching

        return FlowMatching()

    @property
    def _tokens(self) -> int:
        """Tokens of the T5 text. T5 may be left out to save memory; the pipeline then puts zeros in its place."""
        pipe = self.pipeline
        return min(T5_TOKENS, int(pipe.tokenizer_3.model_max_length)) if pipe.text_encoder_3 is not None else T5_TOKENS

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

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the T5 text (CLIP's are cut at their own length, as the pipeline does), of CLIP's where there is no T5."""
        tokenizer = self.pipeline.tokenizer if self.pipeline.text_encoder_3 is None else self.pipeline.tokenizer_3
        return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)

    @without_gradients
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The texts' sequence ``[n, tokens, width]`` and pooled ``[n, width]``."""
        texts = list(prompts)
        sequence, _, pooled, _ = self.pipeline.encode_prompt(
            texts, texts, texts, do_classifier_free_guidance=False, max_sequence_length=self._tokens
        )
        return {"encoder_hidden_states": cast("Tensor", sequence), "pooled_projections": cast("Tensor", pooled)}

    def _call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self._tokens}

    def _start(self, images: Sequence[Image]) -> dict[str, Any]:
        height, width = images[0].shape[:2]
        return {"image": self.encode_pictures(images), "width": width, "height": height}

    @without_gradients
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """See `Family.decode`."""
        vae = self.pipeline.vae
        cells = latents / vae.config.scaling_factor + vae.config.shift_factor
        return to_images(self.pipeline, vae.decode(cells.to(vae.device, vae.dtype), return_dict=False)[0])

    @without_gradients
    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """See `Family.encode_pictures`."""
        config = self.pipeline.vae.config
        return (to_cells(self.pipeline, images) - config.shift_factor) * config.scaling_factor

    def predict(self, noised: Tensor, levels: Tensor, conditions: Mapping[str, Tensor], width: int, height: int, guidance: float) -> Tensor:
        """The velocity ``[rows, channels, rows, columns]`` at sigmas ``levels``; see `Family.predict`."""
        transformer = self.pipeline.transformer
        timestep = levels * self.pipeline.scheduler.config.num_train_timesteps
        return transformer(hidden_states=noised.to(transformer.dtype), timestep=timestep, return_dict=False, **conditions)[0]
