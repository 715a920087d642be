"""What diffusers' schedulers are called in Stable Diffusion web UI, whose names other programs read in pictures."""

from __future__ import annotations

from typing import Any

_NAMES = {
    "DDIMScheduler": "DDIM",
    "DDPMScheduler": "DDPM",
    "DEISMultistepScheduler": "DEIS",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "DPMSolverSinglestepScheduler": "DPM++ 2S",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "FlowMatchHeunDiscreteScheduler": "Heun",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


def sampler_name(scheduler: Any) -> str:
    """The name of a diffusers scheduler's solver; the class's own name where the web UI has none."""
    kind = type(scheduler).__name__
    name = _NAMES.get(kind, kind.removesuffix("Scheduler"))
    stochastic = str(getattr(scheduler.config, "algorithm_type", "")).startswith("sde-")
    return f"{name} SDE" if stochastic else name
