"""What a model can be asked for, and the check of a request against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sfumato.errors import InvalidInput
from sfumato.types import GenerateRequest, Region, Start

MAX_SEED = 2**63 - 1
MAX_CONDITION_NOISE = 10.0
MAX_REGION_STRENGTH = 10.0


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The requests one model can serve, and its defaults.

    Sizes are pixels; ``grid`` divides width and height; ``min_size == max_size`` marks a model of one fixed size.
    ``prompt_tokens`` counts the end token. ``negative_prompts`` marks a model with classifier-free guidance, at a guidance above 1.
    ``sampler`` is the solver that paints, as in `sfumato.diffusion.samplers`; requests cannot choose it.
    """

    grid: int
    min_size: int
    max_size: int
    prompt_tokens: int
    max_steps: int
    guidance: tuple[float, float]
    max_regions: int
    default_size: int
    default_steps: int
    default_guidance: float
    negative_prompts: bool = False
    sampler: str = ""


def check_request(request: GenerateRequest, limits: ModelLimits, count_tokens: Callable[[str], int]) -> None:
    """Refuse a request that the model cannot serve, before anything is computed.

    Raises:
        InvalidInput: naming the field: ``prompt``, ``width``, ``height``, ``steps``, ``guidance_scale``, ``seed``,
            ``regional_steps``, ``soft_edges``, ``regions``, ``regions[i].prompt``, ``regions[i].box``, ``regions[i].strength``,
            ``condition_noise``, ``start.image``, ``start.strength``, ``start.mask`` or ``negative_prompt``.
    """
    _check_prompt("prompt", request.prompt, limits, count_tokens)
    _check_size("width", request.width, limits)
    _check_size("height", request.height, limits)
    if not 1 <= request.steps <= limits.max_steps:
        raise InvalidInput("steps", f"{request.steps} is not in 1..{limits.max_steps}.")
    low, high = limits.guidance
    if not low <= request.guidance_scale <= high:
        allowed = f"must be {low:g}: guidance is distilled into this model" if low == high else f"is not in {low:g}..{high:g}"
        raise InvalidInput("guidance_scale", f"{request.guidance_scale:g} {allowed}.")
    if not 0 <= request.seed <= MAX_SEED:
        raise InvalidInput("seed", f"{request.seed} is not in 0..2^63-1.")
    if not 0 <= request.regional_steps <= 1:
        raise InvalidInput("regional_steps", f"{request.regional_steps:g} is not in 0..1.", hint="It is a share of the schedule.")
    if not 0 <= request.soft_edges <= max(request.width, request.height):
        raise InvalidInput("soft_edges", f"{request.soft_edges:g} is not in 0..{max(request.width, request.height)} pixels.")
    if not 0 <= request.condition_noise <= MAX_CONDITION_NOISE:
        raise InvalidInput("condition_noise", f"{request.condition_noise:g} is not in 0..{MAX_CONDITION_NOISE:g}.")
    if request.start is not None:
        _check_start(request.start, request)
    if request.negative_prompt:
        _check_negative(request, limits, count_tokens)
    if len(request.regions) > limits.max_regions:
        raise InvalidInput("regions", f"{len(request.regions)} are more than the {limits.max_regions} allowed.")
    for index, region in enumerate(request.regions):
        _check_prompt(f"regions[{index}].prompt", region.prompt, limits, count_tokens)
        _check_box(f"regions[{index}].box", region, request)
        if not 0 <= region.strength <= MAX_REGION_STRENGTH:
            raise InvalidInput(f"regions[{index}].strength", f"{region.strength:g} is not in 0..{MAX_REGION_STRENGTH:g}.")


def _check_prompt(field: str, prompt: str, limits: ModelLimits, count_tokens: Callable[[str], int]) -> None:
    if not prompt.strip():
        raise InvalidInput(field, "is empty.", hint="Describe the picture.")
    _check_length(field, prompt, limits, count_tokens)


def _check_negative(request: GenerateRequest, limits: ModelLimits, count_tokens: Callable[[str], int]) -> None:
    if not limits.negative_prompts:
        raise InvalidInput("negative_prompt", "this model has no classifier-free guidance to lead away from it.", hint="Leave it out.")
    if request.guidance_scale <= 1:
        hint = "Ask for a guidance_scale above 1."
        raise InvalidInput("negative_prompt", f"does nothing at a guidance of {request.guidance_scale:g}.", hint=hint)
    _check_length("negative_prompt", request.negative_prompt, limits, count_tokens)


def _check_length(field: str, prompt: str, limits: ModelLimits, count_tokens: Callable[[str], int]) -> None:
    tokens = count_tokens(prompt)
    if tokens > limits.prompt_tokens:
        raise InvalidInput(field, f"has {tokens} tokens, the model reads {limits.prompt_tokens}.", hint="Shorten it.")


def _check_size(field: str, size: int, limits: ModelLimits) -> None:
    if limits.min_size == limits.max_size != size:
        raise InvalidInput(field, f"{size} is not supported: this model paints {limits.max_size} pixels.")
    if not limits.min_size <= size <= limits.max_size:
        raise InvalidInput(field, f"{size} is not in {limits.min_size}..{limits.max_size} pixels.")
    if size % limits.grid:
        raise InvalidInput(field, f"{size} is not a multiple of {limits.grid}.")


def _check_start(start: Start, request: GenerateRequest) -> None:
    if start.image.shape != (request.height, request.width, 3) or start.image.dtype != np.uint8:
        found = " x ".join(map(str, reversed(start.image.shape[:2])))
        hint = "Scale it, or ask for a picture of its size."
        raise InvalidInput("start.image", f"is {found} pixels, the picture {request.width} x {request.height}.", hint=hint)
    if not 0 <= start.strength <= 1:
        raise InvalidInput("start.strength", f"{start.strength:g} is not in 0..1.", hint="It is a share of the steps.")
    if start.mask is not None:
        if start.mask.shape != start.image.shape[:2] or start.mask.dtype != np.uint8:
            found = " x ".join(map(str, reversed(start.mask.shape)))
            raise InvalidInput("start.mask", f"is {found} pixels, the picture {request.width} x {request.height}.")
        if not start.mask.any():
            raise InvalidInput("start.mask", "marks nothing.", hint="Mark what is to be painted with 255.")


def _check_box(field: str, region: Region, request: GenerateRequest) -> None:
    x1, y1, x2, y2 = region.box
    if not (0 <= x1 < x2 <= request.width and 0 <= y1 < y2 <= request.height):
        raise InvalidInput(field, f"{region.box} does not lie in the picture of {request.width}x{request.height} pixels.")
