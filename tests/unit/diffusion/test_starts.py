"""What a picture may start from besides prompt and seed, and what is seen of it in between: every family, small, of real classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FluxImg2ImgPipeline

from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families import Family, family_of
from sfumato.diffusion.families.calling import noised_conditions
from sfumato.diffusion.previews import Previews, watching
from sfumato.diffusion.sampling import Picture, paint
from sfumato.errors import InvalidInput
from sfumato.types import GenerateRequest, Image, Region, Start
from tests.unit.diffusion import tiny
from tests.unit.diffusion.brute import KINDS, PROMPT, Kind

STEPS = 5


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def family(kind: Kind) -> Family:
    return family_of(kind.make())


def wish(kind: Kind, seed: int = 3, **more: Any) -> GenerateRequest:
    return GenerateRequest(PROMPT, seed, 32, 32, STEPS, kind.guidance, **more)


def painted(family: Family, *requests: GenerateRequest, **more: Any) -> list[Picture]:
    return paint(family, requests, RowBudget(family, 8), **more)


def start(strength: float, seed: int = 0) -> Start:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    return Start(np.asarray(pixels), strength)


def through_autoencoder(family: Family, image: Image) -> Image:
    return family.decode(family.encode_pictures([image]), 32, 32)[0]


def test_no_noise_on_the_condition_changes_no_byte_whoever_else_is_painted(family: Family, kind: Kind) -> None:
    (plain,) = painted(family, wish(kind))
    none, noised = painted(family, wish(kind, condition_noise=0.0), wish(kind, condition_noise=0.5))
    assert torch.equal(plain.latents, none.latents)
    assert not torch.equal(plain.latents, noised.latents)


def test_noise_on_the_condition_comes_from_the_seed_and_is_of_the_deviation_asked_for(family: Family, kind: Kind) -> None:
    wanted = [wish(kind, seed, condition_noise=0.25) for seed in range(40)]
    texts = family.encode([PROMPT])
    noise = {name: (noised - texts[name]).double() for name, noised in noised_conditions(family, wanted).items()}
    assert set(noise) == set(texts)
    every = torch.cat([part.flatten() for part in noise.values()])
    count = len(every)
    # Mean and variance of so many normal numbers, within five of their own deviations.
    assert abs(float(every.mean())) < 5 * 0.25 / count**0.5
    assert float(every.square().mean()) == pytest.approx(0.25**2, rel=5 * (2 / count) ** 0.5)
    rows = next(iter(noise.values())).flatten(1)
    assert float(torch.corrcoef(rows).fill_diagonal_(0).abs().max()) < 0.5  # no two pictures have the same
    (first,), (again,), (half,) = (painted(family, each) for each in (wanted[3], wanted[3], replace(wanted[3], condition_noise=0.125)))
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, half.latents)
    assert torch.equal(noised_conditions(family, [wanted[3]])[name := next(iter(noise))], noised_conditions(family, wanted)[name][3:4])


def test_noise_on_the_condition_knows_nothing_of_the_latents_noise(family: Family, kind: Kind) -> None:
    wanted = wish(kind, condition_noise=1.0)
    for name, text in family.encode([PROMPT]).items():
        noise = (noised_conditions(family, [wanted])[name] - text).flatten()
        same = torch.randn(len(noise), generator=torch.Generator().manual_seed(wanted.seed))
        assert abs(float(torch.corrcoef(torch.stack([noise.float(), same]))[0, 1])) < 0.5


def test_strength_nought_gives_the_start_back_and_one_does_not_look_at_it(family: Family, kind: Kind) -> None:
    begun = start(0.0)
    told: list[tuple[int, int]] = []
    (back,) = painted(family, wish(kind, start=begun), on_step=lambda *steps: told.append(steps))
    assert np.array_equal(back.image, through_autoencoder(family, begun.image))
    assert told == []
    (less,) = painted(family, wish(kind, start=Start(begun.image, 0.9 / STEPS)))
    assert np.array_equal(back.image, less.image)
    plain, one = painted(family, wish(kind), wish(kind, start=start(1.0)))
    assert torch.equal(plain.latents, one.latents)


def test_the_more_strength_the_further_from_the_start(family: Family, kind: Kind) -> None:
    begun = family.encode_pictures([start(0).image])[0]
    told: list[tuple[int, int]] = []
    shares = [0.0, 0.4, 0.8]
    pictures = painted(family, *[wish(kind, start=start(share)) for share in shares], on_step=lambda *steps: told.append(steps))
    apart = [float((picture.latents - begun).norm()) for picture in pictures]
    assert apart == sorted(apart) and apart[0] < 1e-4 < apart[1] < apart[2]
    assert told == [(done, 6) for done in range(1, 7)]  # of five steps, two and four


def test_starts_share_forwards_and_each_keeps_its_own(family: Family, kind: Kind) -> None:
    wanted = [wish(kind, seed, start=start(0.6, seed), regions=(Region("a lake", (0, 0, 16, 32)),)) for seed in range(3)]
    for one, alone in zip(painted(family, *wanted), [painted(family, each)[0] for each in wanted], strict=True):
        torch.testing.assert_close(one.latents, alone.latents, rtol=1e-4, atol=1e-4)


def test_a_start_of_flux_is_its_own_image_to_image_pipelines() -> None:
    family = family_of(tiny.flux())
    begun = start(0.6)
    (picture,) = painted(family, GenerateRequest(PROMPT, 3, 32, 32, STEPS, 1.0, start=begun))
    pipeline = FluxImg2ImgPipeline(**family.pipeline.components)
    pipeline.set_progress_bar_config(disable=True)
    cells = pipeline._unpack_latents(family.encode_pictures([begun.image]), 32, 32, 4)
    with torch.no_grad():
        expected = pipeline(
            PROMPT, image=cells, width=32, height=32, strength=0.6, num_inference_steps=STEPS, guidance_scale=1.0, output_type="latent",
            generator=torch.Generator().manual_seed(3), max_sequence_length=tiny.TEXT, return_dict=False,
        )[0][0]  # fmt: skip
    assert torch.equal(picture.latents, expected)


def test_previews_change_nothing_and_the_model_that_knows_the_picture_shows_it(family: Family, kind: Kind) -> None:
    shown: list[tuple[int, int, int]] = []
    images: list[Image] = []

    def tell(index: int, done: int, total: int, image: Image) -> None:
        shown.append((index, done, total))
        images.append(image)

    wanted = [wish(kind, 3), wish(kind, 4), wish(kind, 5, start=start(0.6))]
    plain = painted(family, *wanted)
    seen = painted(family, *wanted, previews=Previews(2, tell))
    assert all(torch.equal(one.latents, other.latents) for one, other in zip(plain, seen, strict=True))
    assert shown == [(0, 2, 5), (1, 2, 5), (0, 4, 5), (1, 4, 5), (2, 2, 3)]
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
    assert "step" not in vars(family.pipeline.scheduler)  # pyright: ignore[reportAttributeAccessIssue]


def schedulers(family: Family) -> list[Any]:
    """The family's own, and for those with a noise schedule of DDPM's kind one that does not tell the clean latents."""
    own: Any = family.pipeline.scheduler  # pyright: ignore[reportAttributeAccessIssue]
    plain = hasattr(own, "alphas_cumprod") and own.init_noise_sigma == 1
    return [own, *([DPMSolverMultistepScheduler.from_config(own.config, solver_order=1)] if plain else [])]


def test_a_preview_is_the_clean_picture_that_a_step_implies(kind: Kind) -> None:
    family = family_of(kind.make())
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scheduler in schedulers(family):
        family.pipeline.scheduler = scheduler  # pyright: ignore[reportAttributeAccessIssue]
        scheduler.set_timesteps(STEPS)
        with watching(family) as watch:
            for index, timestep in enumerate(scheduler.timesteps):
                level = scheduler.sigmas[index : index + 1] if hasattr(scheduler, "scale_noise") else timestep.long().reshape(1)
                sample, prediction = (
                    family.parameterization.noised(clean, noise, level),
                    family.parameterization.target(clean, noise, level),
                )
                if getattr(scheduler, "init_noise_sigma", 1) != 1:  # Euler's: noise is added and nothing is scaled down
                    sample, prediction = clean + scheduler.sigmas[index] * noise, noise
                scheduler.step(prediction, timestep, sample, return_dict=False)
                torch.testing.assert_close(watch.clean(), clean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("condition_noise", {"condition_noise": -0.1}),
        ("condition_noise", {"condition_noise": float("nan")}),
        ("condition_noise", {"condition_noise": 11.0}),
        ("start.strength", {"start": start(1.1)}),
        ("start.strength", {"start": start(float("nan"))}),
        ("start.image", {"start": Start(np.zeros((32, 24, 3), np.uint8), 0.5)}),
    ],
)
def test_starts_that_cannot_be_are_refused_by_their_field(field: str, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        painted(family_of(tiny.flux()), wish(KINDS["flux"], **more))
    assert caught.value.field == field
