"""Stable Diffusion 1.5 and 2.1: a UNet on plain latents, one CLIP text, classifier-free guidance; predicts noise or velocity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sfumato.diffusion.families.calling import size_range, to_cells, to_images
from sfumato.diffusion.families.comfyui import ComfyUINodes
from sfumato.diffusion.families.family import Family, without_gradients
from sfumato.diffusion.limits import ModelLimits
from sfumato.lora.kohya_names import FLAT, KohyaNames
from sfumato.sizes import CLIP_L_TEXT, VAE_4, Blocks, ModelSize
from sfumato.types import Image

if TYPE_CHECKING:
    from torch import Tensor


def unet_size(parameters: int, text: Mapping[str, int], levels: Sequence[tuple[int, int]]) -> ModelSize:
    """The size of a published U-Net pipeline; ``levels`` are blocks and channels of each resolution, the largest first."""
    blocks = tuple(Blocks(count, width, 8 * 2**level) for level, (count, width) in enumerate(levels))
    return ModelSize({"unet": parameters, **text, "vae": VAE_4}, blocks, 256, classifier_free=True)


class UNetFamily(Family):
    """What Stable Diffusion and SDXL share. Latents are ``[batch, channels, rows, columns]``."""

    denoiser_class: ClassVar[str] = "UNet2DConditionModel"
    denoiser_part: ClassVar[str] = "unet"
    classifier_free: ClassVar[bool] = True
    # text_embeds and time_ids are SDXL's, timestep_cond is that of models with distilled guidance.
    per_sample: ClassVar[tuple[str, ...]] = ("sample", "timestep", "timestep_cond", "encoder_hidden_states", "text_embeds", "time_ids")
    rounding: ClassVar[float] = 0.5
    # Attention and MLP of every transformer block.
    lora_targets: ClassVar[str] = (
        r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+\.transformer_blocks\.\d+"
        r"\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.0\.proj|ff\.net\.2)"
    )
    default_guidance: ClassVar[float] = 7.5
    outline: ClassVar[Mapping[str, Any]] = {
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 8,
        "time_cond_proj_dim": 8,  # of distilled guidance
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }

    @classmethod
    def blocks(cls, config: Mapping[str, Any], vae_scale: int) -> tuple[Blocks, ...]:
        """The levels: residual and transformer blocks on the way down and up, of the width and token size of the level."""
        widths, layers = config["block_out_channels"], config["layers_per_block"]
        deep = config.get("transformer_layers_per_block", 1)
        deep = [deep] * len(widths) if isinstance(deep, int) else deep
        attends = ["CrossAttn" in kind for kind in config["down_block_types"]]
        counts = [(2 * layers + 1) * (1 + (deep[level] if attends[level] else 0)) for level in range(len(widths))]
        counts[-1] += 2 + deep[-1]  # the middle
        return tuple(Blocks(count, width, vae_scale * 2**level) for level, (count, width) in enumerate(zip(counts, widths, strict=True)))

    @classmethod
    def kohya(cls, config: Mapping[str, Any]) -> KohyaNames:
        """See `Description.kohya`."""
        return FLAT

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

    def predict(self, noised: Tensor, levels: Tensor, conditions: Mapping[str, Tensor], width: int, height: int, guidance: float) -> Tensor:
        """Noise or velocity ``[rows, channels, rows, columns]`` at timesteps ``levels``; see `Family.predict`."""
        import torch

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

    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    comfyui: ClassVar[ComfyUINodes | None] = ComfyUINodes(
        "EmptyLatentImage", {"stable-diffusion-v1-5/stable-diffusion-v1-5": "v1-5-pruned-emaonly.safetensors"}
    )
    image_to_image: ClassVar[str] = "StableDiffusionImg2ImgPipeline"
    inpainting: ClassVar[str] = "StableDiffusionInpaintPipeline"
    published: ClassVar[Mapping[str, ModelSize]] = {
        # unet/config.json: (320, 640, 1280, 1280), two layers a level down and three up, a transformer block in all but the last.
        "stable-diffusion-v1-5/stable-diffusion-v1-5": unet_size(
            859_520_964, {"text_encoder": CLIP_L_TEXT}, [(10, 320), (10, 640), (10, 1280), (8, 1280)]
        ),
    }

    def _construction(self) -> dict[str, Any]:
        return {"requires_safety_checker": False}

    @without_gradients
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The text's sequence ``[n, tokens, width]``."""
        sequence, _ = self.pipeline.encode_prompt(list(prompts), self.pipeline._execution_device, 1, False)
        return {"encoder_hidden_states": sequence}

    @without_gradients
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """Latents to pictures; the pipeline's safety checker, where it has one, blackens unsafe ones."""
        pipe = self.pipeline
        pixels = pipe.vae.decode(latents.to(pipe.vae.device, pipe.vae.dtype) / pipe.vae.config.scaling_factor, return_dict=False)[0]
        pixels, unsafe = pipe.run_safety_checker(pixels, pixels.device, pixels.dtype)
        return to_images(pipe, pixels, None if unsafe is None else [not flagged for flagged in unsafe])

    @without_gradients
    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """See `Family.encode_pictures`."""
        return to_cells(self.pipeline, images) * self.pipeline.vae.config.scaling_factor
