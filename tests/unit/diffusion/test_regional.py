"""Regional averaging against the paper's formula, written out as a loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.hooks import HookRegistry
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families.flux import FluxFamily
from sfumato.diffusion.regional import HOOK, Branches, plan_branches, regional_average
from sfumato.diffusion.sampling import cut_batches, paint
from sfumato.types import Box, GenerateRequest, Region
from tests.unit.diffusion import tiny

PROMPT = "a full moon over the lake"
REGIONS = (Region("radiant glowing moon", (3, 2, 17, 15)), Region("serene lake", (0, 18, 32, 32)), Region("green tree", (20, 9, 25, 31)))


@pytest.fixture(scope="module")
def family() -> FluxFamily:
    return FluxFamily(tiny.flux())


def request(seed: int, *regions: Region, prompt: str = PROMPT, steps: int = 3) -> GenerateRequest:
    return GenerateRequest(prompt, seed, tiny.SIZE, tiny.SIZE, steps, 1.0, regions)


def hooks(family: FluxFamily) -> set[str]:
    return set(HookRegistry.check_if_exists_or_initialize(family.denoiser).hooks)


def plain(pipeline: FluxPipeline, wanted: GenerateRequest, output_type: str = "latent") -> Any:
    return pipeline(
        wanted.prompt, height=wanted.height, width=wanted.width, num_inference_steps=wanted.steps, guidance_scale=wanted.guidance_scale,
        max_sequence_length=tiny.TEXT, generator=torch.Generator().manual_seed(wanted.seed), output_type=output_type, return_dict=False,
    )[0][0]  # fmt: skip


def pixel_mask(box: Box) -> Tensor:
    """A mask of latent cells, cell by cell: one where any pixel of the cell lies in the box. ``[1, 4, 8, 8]``."""
    x1, y1, x2, y2 = box
    mask = torch.zeros(1, 4, 8, 8)
    for row in range(8):
        for column in range(8):
            touched = any(x1 <= x < x2 and y1 <= y < y2 for x in range(column * 4, column * 4 + 4) for y in range(row * 4, row * 4 + 4))
            mask[0, :, row, column] = float(touched)
    return mask


@torch.no_grad()
def paper(pipeline: FluxPipeline, wanted: GenerateRequest) -> Tensor:
    """ArtAug section 3.1 as a loop: one forward a branch, Euler steps by hand, all in unpacked latent space."""
    cells = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(wanted.seed))
    texts = [pipeline.encode_prompt([text], max_sequence_length=tiny.TEXT) for text in (wanted.prompt, *(r.prompt for r in wanted.regions))]
    masks = [pixel_mask(region.box) for region in wanted.regions]
    positions = torch.tensor([[0.0, y, x] for y in range(4) for x in range(4)])
    sigmas = [*np.linspace(1.0, 1 / wanted.steps, wanted.steps), 0.0]
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        velocities = []
        for sequence, pooled, ids in texts:
            packed = FluxPipeline._pack_latents(cells, 1, 4, 8, 8)
            out = pipeline.transformer(
                hidden_states=packed, timestep=torch.tensor([sigma], dtype=torch.float32), encoder_hidden_states=sequence,
                pooled_projections=pooled, img_ids=positions, txt_ids=ids, return_dict=False,
            )[0]  # fmt: skip
            velocities.append(FluxPipeline._unpack_latents(out, 32, 32, 4))
        above, below = velocities[0], torch.ones_like(cells)
        for mask, velocity in zip(masks, velocities[1:], strict=True):
            above, below = above + velocity * mask, below + mask
        cells = cells + (after - sigma) * above / below
    return FluxPipeline._pack_latents(cells, 1, 4, 8, 8)[0]


def test_without_regions_the_picture_is_the_plain_pipelines_bit_for_bit(family: FluxFamily) -> None:
    picture = paint(family, [request(7)], RowBudget(family, 8))[0]
    assert torch.equal(picture.latents, plain(family.pipeline, request(7)))
    assert np.array_equal(picture.image, np.asarray(plain(family.pipeline, request(7), "pil")))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_equals_the_papers_loop(family: FluxFamily, count: int) -> None:
    wanted = request(11, *REGIONS[:count])
    latents = paint(family, [wanted], RowBudget(family, 8))[0].latents
    torch.testing.assert_close(latents, paper(family.pipeline, wanted), rtol=1e-4, atol=1e-4)


def test_a_region_changes_the_picture(family: FluxFamily) -> None:
    latents = paint(family, [request(11, *REGIONS)], RowBudget(family, 8))[0].latents
    assert (latents - plain(family.pipeline, request(11))).abs().max() > 0.01


def test_a_full_mask_of_the_same_prompt_changes_rounding_only(family: FluxFamily) -> None:
    whole = Region(PROMPT, (0, 0, tiny.SIZE, tiny.SIZE))
    expected = plain(family.pipeline, request(5))
    torch.testing.assert_close(paint(family, [request(5, whole)], RowBudget(family, 8))[0].latents, expected, rtol=1e-5, atol=1e-5)
    text = family.encode([PROMPT])  # and the same through a branch of its own, without the shortcut for repeated prompts
    branches = Branches(owner=(0,), until=(1.0,), conditions=text, masks=torch.ones(1, 16, 16), prompt_weight=torch.ones(1, 16, 16))
    with regional_average(family, branches, 1, 1, 8):
        latents = family.paint([request(5)])
    torch.testing.assert_close(latents[0], expected, rtol=1e-4, atol=1e-4)


def test_repeated_prompts_cost_no_forward_and_change_nothing(family: FluxFamily) -> None:
    twice = request(3, REGIONS[0], Region(REGIONS[0].prompt, (0, 0, 9, 32)), Region(PROMPT, (5, 5, 30, 12)), REGIONS[1])
    branches = plan_branches([twice], family)
    assert branches is not None
    assert branches.owner == (0, 0)
    torch.testing.assert_close(paint(family, [twice], RowBudget(family, 8))[0].latents, paper(family.pipeline, twice), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_batch", [1, 2, 5, 64])
def test_a_mixed_batch_gives_every_sample_what_it_gets_alone(family: FluxFamily, max_batch: int) -> None:
    wanted = [request(1), request(2, *REGIONS), request(3, REGIONS[1]), request(4, prompt="a red house")]
    together = paint(family, wanted, RowBudget(family, max_batch))
    for picture, alone in zip(together, wanted, strict=True):
        expected = paint(family, [alone], RowBudget(family, 64))[0]
        torch.testing.assert_close(picture.latents, expected.latents, rtol=1e-4, atol=1e-4)
        assert picture.seed == alone.seed


def test_a_regions_strength_multiplies_its_mask(family: FluxFamily) -> None:
    moon, lake = REGIONS[:2]
    double, half = replace(moon, strength=2.0), replace(lake, strength=0.5)
    branches, twice = plan_branches([request(3, double, half)], family), plan_branches([request(3, moon, moon, lake)], family)
    assert branches is not None and twice is not None
    assert torch.equal(branches.masks[0], twice.masks[0])
    assert torch.equal(branches.masks[1], twice.masks[1] / 2)
    assert plan_branches([request(3, replace(moon, strength=0.0))], family) is None


def test_embedded_guidance_reaches_every_branch() -> None:
    family = FluxFamily(tiny.flux(guidance_embeds=True))
    wanted = [GenerateRequest(PROMPT, s, 32, 32, 2, g, REGIONS[:2]) for s, g in ((1, 3.5), (2, 3.5), (1, 1.0))]
    weak, other, strong = paint(family, [wanted[2], wanted[1], wanted[0]], RowBudget(family, 8))
    assert (weak.latents - strong.latents).abs().max() > 1e-3
    torch.testing.assert_close(paint(family, wanted[:1], RowBudget(family, 2))[0].latents, strong.latents, rtol=1e-4, atol=1e-4)
    assert other.seed == 2


def test_the_pipeline_is_left_as_it_was(family: FluxFamily) -> None:
    before = plain(family.pipeline, request(9))
    paint(family, [request(9, *REGIONS)], RowBudget(family, 2))
    assert HOOK not in hooks(family)
    assert torch.equal(plain(family.pipeline, request(9)), before)


def test_the_hook_goes_also_when_painting_fails(family: FluxFamily) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paint(family, [request(9, *REGIONS)], RowBudget(family, 8), on_step=stop)
    assert HOOK not in hooks(family)


corner = st.integers(0, 31)


@settings(max_examples=40, deadline=None)
@given(a=corner, b=corner, c=corner, d=corner)
def test_masks_are_the_touched_cells(family: FluxFamily, a: int, b: int, c: int, d: int) -> None:
    box = (min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1)
    expected = FluxPipeline._pack_latents(pixel_mask(box), 1, 4, 8, 8)[0]
    assert torch.equal(family.mask(box, 32, 32), expected)
    assert expected.any()


def test_batches_keep_sizes_steps_and_guidance_apart() -> None:
    wanted = [request(0), request(1, steps=5), request(2), request(3), request(4, steps=5)]
    assert cut_batches(wanted, lambda first: 2) == [[0, 2], [3], [1, 4]]


@torch.no_grad()
def test_encoded_pictures_are_what_decode_takes(family: FluxFamily) -> None:
    picture = paint(family, [request(2)], RowBudget(family, 8))[0].image
    latents = family.encode_pictures([picture, picture])
    assert latents.shape == (2, 16, 16)
    vae = family.pipeline.vae
    pixels = torch.tensor(picture / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    again = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0].permute(1, 2, 0)
    expected = ((again / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert np.abs(family.decode(latents, 32, 32)[1] - expected).max() <= 1
