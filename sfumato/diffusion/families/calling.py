"""What all families do alike: call their pipeline, turn tensors into pictures and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sfumato.types import GenerateRequest, Image

SMALL = 256


def call_pipeline(pipeline: Any, requests: Sequence[GenerateRequest], on_step: Callable[[int, int], None] | None, **more: Any) -> Tensor:
    """Final latents ``[batch, ...]`` of requests of one size, number of steps and guidance; ``more`` goes to the pipeline as it is.

    Every sample's noise comes from its own generator on the CPU, so it depends on its seed alone.
    """
    first = requests[0]

    def step_ended(_: Any, index: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if on_step is not None:
            on_step(index + 1, pipeline.num_timesteps)
        return tensors  # the loop's own, unchanged

    return pipeline(
        prompt=[request.prompt for request in requests],
        width=first.width,
        height=first.height,
        num_inference_steps=first.steps,
        guidance_scale=first.guidance_scale,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        output_type="latent",
        callback_on_step_end=step_ended,
        return_dict=False,
        **more,
    )[0]


def to_images(pipeline: Any, pixels: Tensor, denormalize: list[bool] | None = None) -> list[Image]:
    """What the autoencoder gave, ``[batch, 3, height, width]`` in -1..1, as pictures, by the pipeline's own processor."""
    pictures = pipeline.image_processor.postprocess(pixels, output_type="pil", do_denormalize=denormalize)
    return [np.asarray(picture, dtype=np.uint8) for picture in cast(list[Any], pictures)]


def to_cells(pipeline: Any, images: Sequence[Image]) -> Tensor:
    """The autoencoder's latents of pictures of one size, unscaled (the posterior's mode): ``[batch, channels, rows, columns]``."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(pipeline.vae.device, pipeline.vae.dtype) / 127.5 - 1
    return pipeline.vae.encode(pixels).latent_dist.mode()


def size_range(native: int) -> tuple[int, int]:
    """The least and the largest side, in pixels, of a model trained at ``native``.

    A small model is held to the one size it was trained at; a large one may go from a quarter to twice of it.
    """
    return (native, native) if native < SMALL else (max(SMALL, native // 4), 2 * native)
