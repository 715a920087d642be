"""FLUX.1: packed tokens, T5 sequence and CLIP pooled text, guidance embedded or distilled away (one forward a step)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sfumato.diffusion.families.calling import size_range, to_cells, to_images
from sfumato.diffusion.families.comfyui import ComfyUINodes
from sfumato.diffusion.families.family import Family, without_gradients
from sfumato.diffusion.limits import ModelLimits
from sfumato.errors import InvalidInput
from sfumato.lora.kohya_names import NO_PLACE, Dotted
from sfumato.sizes import CLIP_L_TEXT, T5_XXL, VAE_16, Blocks, ModelSize
from sfumato.types import Box, Image

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.diffusion.parameterization import FlowMatching

T5_TOKENS = 512

# Kohya's names of one block: the published name and the linears of diffusers that stand in it one below the other.
_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn_qkv": _ATTENTION,
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
SINGLE: dict[str, tuple[str, ...]] = {
    "linear1": (*_ATTENTION, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
# Outside the blocks.
ENDS: dict[str, str] = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}
# Shift above scale; diffusers has scale above shift.
SWAPPED = "final_layer_adaLN_modulation_1"
MLP_RATIO = 4  # of every Flux model: proj_mlp is four times as wide as the block


class FluxKohya:
    """Flux's names of its first publication, in which q, k, v (and a single block's MLP) are one linear; see `KohyaNames`."""

    def published(self, module: str) -> tuple[str, int]:
        """See `KohyaNames.published`."""
        for stem, name in ENDS.items():
            if module == name:
                return stem, 0
        match = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", module)
        if match:
            single, index, rest = match.groups()
            for stem, parts in (SINGLE if single else DOUBLE).items():
                if rest in parts:
                    return f"{'single' if single else 'double'}_blocks_{index}_{stem}", parts.index(rest)
        raise InvalidInput("adapter", f"{module} has no place in Flux's kohya layout.", hint=NO_PLACE)

    def modules(self, stem: str, dotted: Dotted) -> tuple[str, ...] | None:
        """See `KohyaNames.modules`."""
        if stem in ENDS:
            return (ENDS[stem],)
        match = re.fullmatch(r"(double|single)_blocks_(\d+)_(.+)", stem)
        table = DOUBLE if match and match[1] == "double" else SINGLE
        if not match or match[3] not in table:
            return None
        block = f"{'single_' if match[1] == 'single' else ''}transformer_blocks.{match[2]}"
        return tuple(f"{block}.{part}" for part in table[match[3]])

    def heights(self, modules: Sequence[str], width: int) -> list[int]:
        """See `KohyaNames.heights`."""
        return [MLP_RATIO * width if module.endswith(".proj_mlp") else width for module in modules]

    def halves_swapped(self, stem: str) -> bool:
        """See `KohyaNames.halves_swapped`."""
        return stem == SWAPPED


class FluxFamily(Family):
    """What the engines need to know of one ``FluxPipeline``; the pipeline itself stays untouched.

    Latents are FLUX's packed tokens ``[batch, tokens, channels]``: 2x2 latent cells a token, ``channels = 4 * vae channels``.
    """

    pipeline_class: ClassVar[str] = "FluxPipeline"
    denoiser_class: ClassVar[str] = "FluxTransformer2DModel"
    image_to_image: ClassVar[str] = "FluxImg2ImgPipeline"
    inpainting: ClassVar[str] = "FluxInpaintPipeline"
    denoiser_part: ClassVar[str] = "transformer"
    classifier_free: ClassVar[bool] = False  # guidance is embedded or distilled away
    per_sample: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep", "guidance", "encoder_hidden_states", "pooled_projections")
    rounding: ClassVar[float] = -0.5
    # Attention, MLP and modulation.
    lora_targets: ClassVar[str] = (
        r"(single_)?transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|ff\.net\.0\.proj|ff\.net\.2|ff_context\.net\.0\.proj|ff_context\.net\.2"
        r"|proj_mlp|proj_out|norm\.linear|norm1\.linear|norm1_context\.linear)"
    )

    outline: ClassVar[Mapping[str, Any]] = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "guidance_embeds": True,
    }
    comfyui: ClassVar[ComfyUINodes | None] = ComfyUINodes(
        "EmptySD3LatentImage",
        {"black-forest-labs/FLUX.1-dev": "flux1-dev.safetensors", "black-forest-labs/FLUX.1-schnell": "flux1-schnell.safetensors"},
        text=("t5xxl_fp16.safetensors", "clip_l.safetensors", "flux"),
        autoencoder="ae.safetensors",
    )
    published: ClassVar[Mapping[str, ModelSize]] = {
        # "A 12 billion parameter rectified flow transformer" (the model card); transformer/config.json, 19 double and 38 single blocks.
        "black-forest-labs/FLUX.1-dev": ModelSize(
            {"transformer": 11_901_408_320, "text_encoder": CLIP_L_TEXT, "text_encoder_2": T5_XXL, "vae": VAE_16},
            (Blocks(57, 3072, 16, T5_TOKENS),),
            256,
            gated=True,
        ),
    }

    @classmethod
    def blocks(cls, config: Mapping[str, Any], vae_scale: int) -> tuple[Blocks, ...]:
        """Double and single blocks, on tokens of 2x2 latent cells."""
        width = config["num_attention_heads"] * config["attention_head_dim"]
        return (Blocks(config["num_layers"] + config["num_single_layers"], width, 2 * vae_scale, T5_TOKENS),)

    @classmethod
    def kohya(cls, config: Mapping[str, Any]) -> FluxKohya:
        """See `Description.kohya`."""
        return FluxKohya()

    @classmethod
    def kohya_dialects(cls) -> tuple[FluxKohya, ...]:
        """See `Description.kohya_dialects`."""
        return (FluxKohya(),)

    def _parameterization(self) -> FlowMatching:
        from sfumato.diffusion.parameterization import FlowMatching

        return FlowMatching()

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

    @without_gradients
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The text as the transformer takes it: sequence ``[n, tokens, width]`` and pooled ``[n, width]``."""
        sequence, pooled, _ = self.pipeline.encode_prompt(list(prompts), max_sequence_length=self.limits.prompt_tokens)
        return {"encoder_hidden_states": cast("Tensor", sequence), "pooled_projections": cast("Tensor", pooled)}

    def mask(self, box: Box, width: int, height: int, soft: float = 0.0) -> Tensor:
        """Packed as latents are, ``[tokens, channels]``; see `cell_mask`."""
        channels = self.pipeline.transformer.config.in_channels // 4
        cells = self._cells(box, width, height, soft)
        return self.pipeline._pack_latents(cells.repeat(1, channels, 1, 1), 1, channels, *cells.shape)[0]

    def _call_options(self) -> dict[str, Any]:
        return {"max_sequence_length": self.limits.prompt_tokens}

    def _start(self, images: Sequence[Image]) -> dict[str, Any]:
        height, width = images[0].shape[:2]
        cells = self.pipeline._unpack_latents(self.encode_pictures(images), height, width, self.pipeline.vae_scale_factor)
        return {"image": cells, "width": width, "height": height}

    @without_gradients
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """Packed latents ``[batch, tokens, channels]`` to pictures, as the pipeline itself does it."""
        pipe = self.pipeline
        cells = self.pipeline._unpack_latents(latents, height, width, pipe.vae_scale_factor)
        cells = (cells / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).to(pipe.vae.device, pipe.vae.dtype)
        return to_images(pipe, pipe.vae.decode(cells, return_dict=False)[0])

    @without_gradients
    def encode_pictures(self, images: Sequence[Image]) -> Tensor:
        """Pictures of one size to the packed latents ``[batch, tokens, channels]`` that `decode` takes (the posterior's mode)."""
        config = self.pipeline.vae.config
        cells = (to_cells(self.pipeline, images) - config.shift_factor) * config.scaling_factor
        return self.pipeline._pack_latents(cells, *cells.shape)

    def predict(self, noised: Tensor, levels: Tensor, conditions: Mapping[str, Tensor], width: int, height: int, guidance: float) -> Tensor:
        """The velocity ``[rows, tokens, channels]`` at sigmas ``levels``; see `Family.predict`."""
        import torch

        transformer = self.pipeline.transformer
        noised = noised.to(transformer.dtype)
        cell = self.pipeline.vae_scale_factor * 2
        text = conditions["encoder_hidden_states"]
        embeds = transformer.config.guidance_embeds
        return transformer(
            hidden_states=noised,
            timestep=levels,
            guidance=torch.full([len(noised)], guidance, device=noised.device, dtype=torch.float32) if embeds else None,
            img_ids=self.pipeline._prepare_latent_image_ids(1, height // cell, width // cell, noised.device, noised.dtype),
            txt_ids=torch.zeros(text.shape[1], 3, device=noised.device, dtype=noised.dtype),
            return_dict=False,
            **conditions,
        )[0]
