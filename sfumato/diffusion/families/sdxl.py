"""Stable Diffusion XL: as Stable Diffusion, with two CLIP texts, a pooled text and the picture's size as conditions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sfumato.diffusion.families.calling import to_cells, to_images
from sfumato.diffusion.families.comfyui import ComfyUINodes
from sfumato.diffusion.families.family import without_gradients
from sfumato.diffusion.families.sd import UNetFamily, unet_size
from sfumato.errors import InvalidInput
from sfumato.lora.kohya_names import FLAT, NO_PLACE, Dotted, FlatNames, KohyaNames
from sfumato.sizes import CLIP_G_TEXT, CLIP_L_TEXT, ModelSize
from sfumato.types import Image

if TYPE_CHECKING:
    from torch import Tensor

# SDXL's U-Net of its first publication: two resnets a block on the way down, three on the way up.
SGM_LAYERS = 2
_SGM_INNER = {"resnets": 0, "attentions": 1}
_SGM_RESNET = {"time_emb_proj": "emb_layers_1", "conv_shortcut": "skip_connection"}
_SGM_EMBEDDINGS = {
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}


class SgmNames(FlatNames):
    """SDXL's names of its first publication (``input_blocks``, ``middle_block``, ``output_blocks``); see `KohyaNames`."""

    def published(self, module: str) -> tuple[str, int]:
        """See `KohyaNames.published`."""
        if module in _SGM_EMBEDDINGS:
            return _SGM_EMBEDDINGS[module], 0
        if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", module):
            way, block, kind, layer, rest = match.groups()
            index = int(block) * (SGM_LAYERS + 1) + int(layer) + (way == "down")
            stem = f"{'input' if way == 'down' else 'output'}_blocks_{index}_{_SGM_INNER[kind]}"
        elif match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", module):
            kind, layer, rest = match.groups()
            stem = f"middle_block_{1 if kind == 'attentions' else 2 * int(layer)}"
        else:
            raise InvalidInput("adapter", f"{module} has no place in SDXL's kohya layout.", hint=NO_PLACE)
        return f"{stem}_{_SGM_RESNET.get(rest, rest).replace('.', '_')}", 0

    def modules(self, stem: str, dotted: Dotted) -> tuple[str, ...] | None:
        """See `KohyaNames.modules`; None for names that are not of this publication."""
        for name, published in _SGM_EMBEDDINGS.items():
            if stem == published:
                return (name,)
        if match := re.fullmatch(r"(input|output)_blocks_(\d+)_([01])_(.+)", stem):
            way, index, inner, rest = match.groups()
            block, layer = divmod(int(index) - (way == "input"), SGM_LAYERS + 1)
            place = f"{'down' if way == 'input' else 'up'}_blocks_{block}_{('resnets', 'attentions')[int(inner)]}_{layer}"
        elif match := re.fullmatch(r"middle_block_([012])_(.+)", stem):
            index, rest = match.groups()
            place = f"mid_block_{('resnets_0', 'attentions_0', 'resnets_1')[int(index)]}"
        else:
            return None
        rest = next((name for name, published in _SGM_RESNET.items() if published == rest), rest)
        return super().modules(f"{place}_{rest}", dotted)


class SDXLFamily(UNetFamily):
    """What the engines need to know of one ``StableDiffusionXLPipeline``."""

    default_guidance: ClassVar[float] = 5.0

    pipeline_class: ClassVar[str] = "StableDiffusionXLPipeline"
    comfyui: ClassVar[ComfyUINodes | None] = ComfyUINodes(
        "EmptyLatentImage", {"stabilityai/stable-diffusion-xl-base-1.0": "sd_xl_base_1.0.safetensors"}
    )
    outline: ClassVar[Mapping[str, Any]] = {
        **UNetFamily.outline,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
    }
    image_to_image: ClassVar[str] = "StableDiffusionXLImg2ImgPipeline"
    inpainting: ClassVar[str] = "StableDiffusionXLInpaintPipeline"
    published: ClassVar[Mapping[str, ModelSize]] = {
        # unet/config.json: (320, 640, 1280), with no, two and ten transformer blocks a layer.
        "stabilityai/stable-diffusion-xl-base-1.0": unet_size(
            2_567_463_684, {"text_encoder": CLIP_L_TEXT, "text_encoder_2": CLIP_G_TEXT}, [(5, 320), (15, 640), (67, 1280)]
        ),
    }

    @classmethod
    def kohya(cls, config: Mapping[str, Any]) -> KohyaNames:
        """SDXL's own names for a U-Net of its published depth, else diffusers'."""
        return SgmNames() if config["layers_per_block"] == SGM_LAYERS else FLAT

    @classmethod
    def kohya_dialects(cls) -> tuple[KohyaNames, ...]:
        """See `Description.kohya_dialects`."""
        return (SgmNames(),)

    @property
    def changes_autoencoder_precision(self) -> bool:
        """See `Family.changes_autoencoder_precision`: SDXL's autoencoder overflows in half precision, where it says so."""
        import torch

        vae = self.pipeline.vae
        return bool(vae.config.force_upcast) and vae.dtype != torch.float32

    def _construction(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self.pipeline.config.force_zeros_for_empty_prompt, "add_watermarker": False}

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the longer of both CLIP texts, with begin and end."""
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        return max(len(tokenizer(prompt, truncation=False, verbose=False).input_ids) for tokenizer in tokenizers)

    @without_gradients
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

    @without_gradients
    def decode(self, latents: Tensor, width: int, height: int) -> list[Image]:
        """Latents to pictures, with the pipeline's invisible watermark where it has one.

        SDXL's autoencoder overflows in float16: where it says so, it works in float32 meanwhile.
        """
        import torch

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

    @without_gradients
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
