"""ArtAug section 3.1 written out: one forward a branch, one sample at a time, masks pixel by pixel. Knows no code of ours but carriers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from sfumato.types import Box, GenerateRequest, Region
from tests.unit.diffusion import tiny

CELL = 4
PROMPT = "a full moon over the lake"


def flux_prediction(pipeline: Any, cells: Tensor, t: Tensor, prompt: str | None, **_: Any) -> Tensor:
    """Velocity of unpacked latents ``[1, 4, rows, columns]``; FLUX has no unconditional branch."""
    rows, columns = cells.shape[2:]
    sequence, pooled, ids = pipeline.encode_prompt([prompt], max_sequence_length=tiny.TEXT)
    positions = torch.tensor([[0.0, y, x] for y in range(rows // 2) for x in range(columns // 2)], dtype=cells.dtype)
    packed = FluxPipeline._pack_latents(cells, 1, 4, rows, columns)
    out = pipeline.transformer(
        hidden_states=packed, timestep=(t / 1000).reshape(1).to(cells.dtype), encoder_hidden_states=sequence, pooled_projections=pooled,
        img_ids=positions, txt_ids=ids, return_dict=False,
    )[0]  # fmt: skip
    return FluxPipeline._unpack_latents(out, rows * CELL, columns * CELL, CELL)


def sd_prediction(pipeline: Any, cells: Tensor, t: Tensor, prompt: str | None) -> Tensor:
    """Noise or velocity; no prompt is the empty one."""
    sequence = pipeline.encode_prompt([prompt or ""], "cpu", 1, False)[0]
    return pipeline.unet(cells, t, encoder_hidden_states=sequence).sample


def sdxl_prediction(pipeline: Any, cells: Tensor, t: Tensor, prompt: str | None) -> Tensor:
    """Noise; no prompt is a text of zeros."""
    sequence, _, pooled, _ = pipeline.encode_prompt([prompt or ""], do_classifier_free_guidance=False)
    if prompt is None:
        sequence, pooled = torch.zeros_like(sequence), torch.zeros_like(pooled)
    height, width = (side * CELL for side in cells.shape[2:])
    times = torch.tensor([[height, width, 0, 0, height, width]], dtype=cells.dtype)
    return pipeline.unet(cells, t, encoder_hidden_states=sequence, added_cond_kwargs={"text_embeds": pooled, "time_ids": times}).sample


def sd3_prediction(pipeline: Any, cells: Tensor, t: Tensor, prompt: str | None, **more: Any) -> Tensor:
    """Velocity; no prompt is the empty one."""
    text = [prompt or ""]
    length = tiny.TEXT if pipeline.text_encoder_3 is not None else 256
    sequence, _, pooled, _ = pipeline.encode_prompt(text, text, text, do_classifier_free_guidance=False, max_sequence_length=length)
    return pipeline.transformer(
        hidden_states=cells, timestep=t.reshape(1), encoder_hidden_states=sequence, pooled_projections=pooled, **more
    ).sample


class Remembering:
    """A pipeline that encodes every text once: the loops ask at every step."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._known: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        key = repr((args, kwargs))
        if key not in self._known:
            self._known[key] = self._pipeline.encode_prompt(*args, **kwargs)
        return self._known[key]


@dataclass(frozen=True)
class Kind:
    """A family under test: how to make its pipeline, to ask its denoiser, to lay out its latents."""

    make: Callable[[], Any]
    predict: Callable[..., Tensor]
    guidance: float = 4.0
    packed: bool = False
    # What float32 parts inside the pipelines (rotary embeddings, flow matching steps) leave of float64.
    tolerance: float = 1e-9


KINDS = {
    "flux": Kind(tiny.flux, flux_prediction, 1.0, True, 1e-4),
    "sd": Kind(tiny.sd, sd_prediction),
    "sd-v": Kind(lambda: tiny.sd("v_prediction"), sd_prediction),
    "sdxl": Kind(tiny.sdxl, sdxl_prediction, tolerance=1e-5),
    "sd3": Kind(tiny.sd3, sd3_prediction, tolerance=1e-5),
    "sd3-without-t5": Kind(lambda: tiny.sd3(with_t5=False), sd3_prediction, tolerance=1e-5),
}


def pixel_mask(box: Box, width: int, height: int, soft: bool = False) -> Tensor:
    """Cell by cell: one where any pixel of it lies in the box; soft, the share of its pixels that do."""
    x1, y1, x2, y2 = box
    mask = torch.zeros(1, 4, height // CELL, width // CELL, dtype=torch.float64)
    for row in range(height // CELL):
        for column in range(width // CELL):
            inside = sum(
                x1 <= x < x2 and y1 <= y < y2
                for x in range(column * CELL, column * CELL + CELL)
                for y in range(row * CELL, row * CELL + CELL)
            )
            mask[0, :, row, column] = inside / CELL**2 if soft else float(inside > 0)
    return mask


@torch.no_grad()
def loop(kind: Kind, pipeline: Any, wanted: GenerateRequest) -> Tensor:
    """Final latents of one sample, ``[...]`` as the family lays them out, in the pipeline's precision."""
    dtype = pipeline.vae.dtype
    generator = torch.Generator().manual_seed(wanted.seed)
    cells = torch.randn(1, 4, wanted.height // CELL, wanted.width // CELL, generator=generator, dtype=dtype)
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    steps = wanted.steps
    scheduler.set_timesteps(**({"sigmas": np.linspace(1.0, 1 / steps, steps)} if kind.packed else {"num_inference_steps": steps}))
    cells = cells * getattr(scheduler, "init_noise_sigma", 1.0)
    masks = [pixel_mask(region.box, wanted.width, wanted.height, wanted.soft_edges > 0).to(dtype) for region in wanted.regions]
    pipeline = Remembering(pipeline)
    for index, t in enumerate(scheduler.timesteps):
        taken = scheduler.scale_model_input(cells, t) if hasattr(scheduler, "scale_model_input") else cells
        above, below = kind.predict(pipeline, taken, t, wanted.prompt), torch.ones_like(cells)
        if index < wanted.regional_steps * len(scheduler.timesteps):
            for region, mask in zip(wanted.regions, masks, strict=True):
                above, below = above + kind.predict(pipeline, taken, t, region.prompt) * mask, below + mask
        prediction = above / below
        if wanted.guidance_scale > 1:
            empty = kind.predict(pipeline, taken, t, None)
            prediction = empty + wanted.guidance_scale * (prediction - empty)
        cells = scheduler.step(prediction, t, cells, return_dict=False)[0]
    return FluxPipeline._pack_latents(cells, *cells.shape)[0] if kind.packed else cells[0]


def layouts(width: int, height: int) -> dict[str, tuple[Region, ...]]:
    """Regions of every awkward kind for a picture of this size."""
    return {
        "none": (),
        "apart": (
            Region("radiant glowing moon", (width // 8, height // 8, width // 2 - 2, height - 3)),
            Region("serene lake", (width // 2 + 3, 1, width - 1, height // 2)),
        ),
        "overlapping": (
            Region("green tree", (1, 1, width * 2 // 3, height * 2 // 3)),
            Region("serene lake", (width // 3, height // 3, width - 1, height - 2)),
            Region("a red boat", (width // 4, 0, width // 2, height)),
        ),
        "one pixel": (Region("glowing sun", (width // 2, height // 2, width // 2 + 1, height // 2 + 1)),),
        "borders": (
            Region("glowing sun", (0, 0, width, 3)),
            Region("serene lake", (0, height - 1, width, height)),
            Region("green tree", (width - 1, 0, width, height)),
            Region("a house", (0, 0, 2, height)),
        ),
        "repeated": (Region("serene lake", (0, 0, 9, height)), Region("serene lake", (5, 5, width, 12)), Region(PROMPT, (0, 3, width, 13))),
    }
