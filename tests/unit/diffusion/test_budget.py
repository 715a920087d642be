"""The count of rows by memory: what it counts, and that it changes no picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from sfumato.diffusion.budget import PeakBytes, RowBudget, decoder_bytes, denoiser_bytes
from sfumato.diffusion.families import family_of
from sfumato.diffusion.sampling import paint
from sfumato.types import GenerateRequest
from tests.unit.diffusion import tiny
from tests.unit.diffusion.brute import KINDS, PROMPT, layouts


@pytest.fixture(scope="module", params=["flux", "sd", "sdxl", "sd3"])
def pipeline(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return KINDS[request.param].make()


def test_the_peak_of_a_chain_is_what_lives_at_once() -> None:
    given = torch.ones(1000)
    with PeakBytes() as live:
        one = given + 1  # 4000
        two = one.view(10, 100) * 2  # 8000, the view costs nothing
        del one
        three = two + two  # 8000 again
        three.add_(1)
        del two, three
        torch.ones(500)
    assert live.peak == 8000


@torch.no_grad()
def test_a_real_forward_never_makes_more_than_was_counted_and_the_largest_as_much(pipeline: DiffusionPipeline) -> None:
    family: Any = family_of(pipeline)
    counted = denoiser_bytes(family, 32, 32, 12), decoder_bytes(family, 32, 32, 12)
    for rows in (1, 3, 12):
        text = family.encode(["a"] * rows)
        levels = family.parameterization.levels(torch.full([rows], 0.5))
        with PeakBytes() as denoiser:
            family.predict(torch.zeros(rows, *family.mask((0, 0, 32, 32), 32, 32).shape), levels, text, 32, 32, 1.0)
        with PeakBytes() as decoder:
            family.pipeline.vae.decode(torch.zeros(rows, 4, 8, 8))
        for (fixed, each), live in zip(counted, (denoiser, decoder), strict=True):
            assert live.peak <= fixed + rows * each
            assert rows < 12 or live.peak > 0.97 * (fixed + rows * each)


def test_rows_follow_the_memory_and_one_always_goes() -> None:
    family = family_of(tiny.flux())
    fixed, each = denoiser_bytes(family, 32, 32, 8)
    assert each > 32 * 32 * 4
    assert [RowBudget(family, 8, fixed + rows * each).rows(32, 32) for rows in (1, 3, 8, 50)] == [1, 3, 8, 8]
    assert RowBudget(family, 8, fixed + 3 * each - 1).rows(32, 32) == 2
    assert RowBudget(family, 8, 1).rows(32, 32) == RowBudget(family, 8, 1).pictures(32, 32) == 1
    assert RowBudget(family, 8).rows(32, 32) == 8


def test_larger_pictures_need_more() -> None:
    family = family_of(tiny.sd())
    assert denoiser_bytes(family, 64, 64, 2)[1] > 3 * denoiser_bytes(family, 32, 32, 2)[1]
    assert decoder_bytes(family, 64, 64, 2)[1] > 3 * decoder_bytes(family, 32, 32, 2)[1]


def test_a_short_memory_changes_rounding_only(pipeline: DiffusionPipeline) -> None:
    family = family_of(pipeline)
    guidance = 1.0 if family.limits.guidance[1] == 1.0 else 4.0
    wanted = [GenerateRequest(PROMPT, n, 32, 32, 2, guidance, regions) for n, regions in enumerate(list(layouts(32, 32).values())[:3])]
    fixed, each = denoiser_bytes(family, 32, 32, 64)
    roomy, short = paint(family, wanted, RowBudget(family, 64)), paint(family, wanted, RowBudget(family, 64, fixed + 2 * each))
    for one, other in zip(roomy, short, strict=True):
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4)
