"""What all families share: calling their pipeline, turning tensors into pictures and back. Imports PyTorch where it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL.Image

from sfumato.types import GenerateRequest, Image

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.diffusion.families.family import Family

SMALL = 256
# What the denoiser's forward calls the text, and what pipelines call it.
TEXTS = {
    "encoder_hidden_states": "prompt_embeds",
    "pooled_projections": "pooled_prompt_embeds",
    "text_embeds": "pooled_prompt_embeds",
}


def call_pipeline(family: Family, requests: Sequence[GenerateRequest], on_step: Callable[[int, int], None] | None, **more: Any) -> Tensor:
    """Final latents ``[batch, ...]`` of requests of one size, number of steps, guidance and kind (with or without a start or a mask,
    with or without noise on the condition); ``more`` goes to the pipeline as it is.

    Every sample's noise comes from its own generator on the CPU, so it depends on its seed alone.
    """
    import torch

    first = requests[0]
    pipeline: Any = family.pipeline
    arguments: dict[str, Any] = {"prompt": [request.prompt for request in requests]}
    if first.condition_noise > 0:
        arguments = {TEXTS[name]: text for name, text in noised_conditions(family, requests).items()}
    if any(request.negative_prompt for request in requests):
        arguments["negative_prompt"] = [request.negative_prompt for request in requests]
    starts = [request.start for request in requests if request.start is not None]
    # Half a step away from where the pipeline would round to another number of steps.
    strength = 1.0 if first.steps_made == first.steps else (first.steps_made + family.rounding) / first.steps
    if first.masked:
        # As pixels: what a mask leaves is noised from the autoencoder's posterior, as the pipeline always does.
        pipeline = family.masked()
        masks = [PIL.Image.fromarray(start.mask) for start in starts if start.mask is not None]
        arguments |= {"image": [PIL.Image.fromarray(start.image) for start in starts], "mask_image": masks}
        arguments |= {"width": first.width, "height": first.height, "strength": strength}
    elif first.steps_made < first.steps:
        pipeline, start = family.from_pictures([start.image for start in starts])
        arguments |= start | {"strength": strength}
    else:
        arguments |= {"width": first.width, "height": first.height}

    def step_ended(_: Any, index: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if on_step is not None:
            on_step(index + 1, pipeline.num_timesteps)
        return tensors  # the loop's own, unchanged

    return pipeline(
        **arguments,
        num_inference_steps=first.steps,
        guidance_scale=first.guidance_scale,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        output_type="latent",
        callback_on_step_end=step_ended,
        return_dict=False,
        **more,
    )[0]


def noised_conditions(family: Family, requests: Sequence[GenerateRequest]) -> dict[str, Tensor]:
    """The prompts as `Family.encode` gives them, plus normal noise of each request's ``condition_noise``, drawn from its seed."""
    import torch

    texts = family.encode([request.prompt for request in requests])
    # A separate stream: the seed itself makes the latents' noise, and the two must be independent.
    draws = [int.from_bytes(hashlib.sha256(f"condition {request.seed}".encode()).digest()[:8]) >> 1 for request in requests]
    generators = [torch.Generator().manual_seed(draw) for draw in draws]
    sigmas = [request.condition_noise for request in requests]
    noised = {}
    for name, text in sorted(texts.items()):
        noise = [sigma * torch.randn(text.shape[1:], generator=each) for sigma, each in zip(sigmas, generators, strict=True)]
        noised[name] = (text.float() + torch.stack(noise).to(text.device)).to(text.dtype)
    return noised


def quiet(pipeline: Any) -> Any:
    """Without a progress bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_images(pipeline: Any, pixels: Tensor, denormalize: list[bool] | None = None) -> list[Image]:
    """What the autoencoder gave, ``[batch, 3, height, width]`` in -1..1, as pictures, by the pipeline's own processor."""
    pictures = pipeline.image_processor.postprocess(pixels, output_type="pil", do_denormalize=denormalize)
    return [np.asarray(picture, dtype=np.uint8) for picture in cast(list[Any], pictures)]


def to_cells(pipeline: Any, images: Sequence[Image]) -> Tensor:
    """The autoencoder's latents of pictures of one size, unscaled (the posterior's mode): ``[batch, channels, rows, columns]``."""
    import torch

    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(pipeline.vae.device, pipeline.vae.dtype) / 127.5 - 1
    return pipeline.vae.encode(pixels).latent_dist.mode()


def size_range(native: int) -> tuple[int, int]:
    """The least and the largest side, in pixels, of a model trained at ``native``.

    A small model is held to the one size it was trained at; a large one may go from a quarter to twice of it.
    """
    return (native, native) if native < SMALL else (max(SMALL, native // 4), 2 * native)
