"""The parameterizations against the schedulers' own formulas, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from sfumato.diffusion.parameterization import Epsilon, FlowMatching, VPrediction, parameterization_of
from sfumato.errors import InvalidInput

ROWS = 6
DDPM = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def draw(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, *shape, generator=generator).double(), torch.randn(ROWS, *shape, generator=generator).double()


UNIFORM = (torch.arange(ROWS) + 0.5) / ROWS


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shape", [(4, 8, 8), (16, 16)])
def test_diffusion_adds_noise_and_aims_as_the_scheduler_does(shape: tuple[int, ...], rescale: bool) -> None:
    latents, noise = draw(*shape)
    kinds: list[tuple[Any, type]] = [("epsilon", Epsilon), ("v_prediction", VPrediction)]
    for kind, cls in kinds:
        scheduler: Any = DDIMScheduler(prediction_type=kind, rescale_betas_zero_snr=rescale, **DDPM)
        parameterization = parameterization_of(scheduler)
        assert type(parameterization) is cls
        levels = parameterization.levels(UNIFORM)
        noised = scheduler.add_noise(latents, noise, levels)
        torch.testing.assert_close(parameterization.noised(latents, noise, levels), noised, rtol=1e-12, atol=0)
        expected = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, levels)
        torch.testing.assert_close(parameterization.target(latents, noise, levels), expected, rtol=1e-10, atol=1e-12)


def test_eulers_sigmas_are_the_same_levels() -> None:
    latents, noise = draw(4, 8, 8)
    scheduler: Any = EulerDiscreteScheduler(**DDPM)
    parameterization = parameterization_of(scheduler)
    levels = parameterization.levels(UNIFORM)
    noisy = scheduler.add_noise(latents, noise, levels)
    for row, level in enumerate(levels):
        sigma = scheduler.sigmas[scheduler.index_for_timestep(level)].double()
        scaled = noisy[row] / (sigma**2 + 1).sqrt()
        torch.testing.assert_close(parameterization.noised(latents, noise, levels)[row], scaled, rtol=1e-6, atol=1e-6)


def test_timesteps_are_uniform_and_inside_the_schedule() -> None:
    parameterization = parameterization_of(DDPMScheduler(num_train_timesteps=50))
    levels = parameterization.levels((torch.arange(500) + 0.5) / 500)
    assert levels.dtype == torch.int64
    assert torch.equal(levels.bincount(), torch.full((50,), 10))
    assert parameterization.levels(torch.tensor([0.0, 1.0])).tolist() == [0, 49]


def test_flow_matching_adds_noise_as_the_scheduler_does() -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    parameterization = parameterization_of(scheduler)
    assert isinstance(parameterization, FlowMatching)
    latents, noise = draw(4, 8, 8)
    timesteps = scheduler.timesteps[[0, 1, 300, 500, 998, 999]]
    expected = scheduler.scale_noise(latents, timesteps, noise)
    torch.testing.assert_close(parameterization.noised(latents, noise, timesteps / 1000), expected, rtol=1e-6, atol=1e-6)
    step = 1e-6  # the target is the derivative along the line
    level = torch.full((ROWS,), 0.3).double()
    slope = (parameterization.noised(latents, noise, level + step) - parameterization.noised(latents, noise, level)) / step
    torch.testing.assert_close(parameterization.target(latents, noise, level), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.2, 0.5)])
def test_sigmas_are_logit_normal(mean: float, deviation: float) -> None:
    uniform = (torch.arange(1000).double() + 0.5) / 1000
    levels = FlowMatching(mean, deviation).levels(uniform)
    expected = torch.distributions.Normal(mean, deviation).icdf(uniform).sigmoid().float()
    torch.testing.assert_close(levels, expected, rtol=1e-5, atol=1e-6)
    assert bool(((FlowMatching().levels(torch.tensor([0.0, 1.0])) % 1) > 0).all())


def test_other_predictions_and_schedules_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'sample'.*epsilon"):
        parameterization_of(DDPMScheduler(prediction_type="sample"))
    with pytest.raises(InvalidInput, match="object"):
        parameterization_of(object())
