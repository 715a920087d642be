"""Pictures that start from others, masks, advice, negative prompts and previews, in the same forwards as plain pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FluxInpaintPipeline, StableDiffusion3InpaintPipeline, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline

from services.inference.painting.engine import InferenceEngine, PaintedImage, PaintRequest
from sfumato.diffusion.budget import RowBudget
from sfumato.diffusion.families import family_of
from sfumato.diffusion.previews import Previews
from sfumato.diffusion.sampling import paint
from sfumato.errors import InvalidInput
from sfumato.types import Image, Region, Start
from tests.unit.diffusion import tiny
from tests.unit.services.inference.painting.engines import MAKERS, asked, changed, counted, engine_of, painting, together
from tests.unit.services.inference.painting.test_scale import far

PIXELS: Image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
MASK: Image = np.zeros((32, 32), np.uint8)
MASK[8:20, 4:28] = 255
INPAINT: dict[str, tuple[Callable[[], Any], Any, float]] = {
    "flux": (tiny.flux, FluxInpaintPipeline, 1.0),
    "sd": (tiny.sd, StableDiffusionInpaintPipeline, 5.0),
    "sdxl": (tiny.sdxl, StableDiffusionXLInpaintPipeline, 5.0),
    "sd3": (lambda: tiny.sd3(channels=16), StableDiffusion3InpaintPipeline, 5.0),
}
MOON = (Region("radiant moon", (3, 2, 17, 15)), Region("serene lake", (0, 18, 32, 32), 0.5))


def expected(make: Callable[[], Any], wanted: PaintRequest) -> Image:
    """As the generator paints it, by itself."""
    family = family_of(make())
    return paint(family, [wanted.request], RowBudget(family, 16))[0].image


@pytest.mark.parametrize("family", MAKERS)
def test_starts_masks_advice_and_negative_prompts_share_forwards_and_each_keeps_its_own(family: str) -> None:
    make, guidance = MAKERS[family]
    plain = asked(guidance_scale=guidance, steps=5)
    all_asked = [plain, changed(plain, start=Start(PIXELS, 0.6)), changed(plain, regions=MOON), changed(plain, condition_noise=0.2)]
    if family != "sd3":
        all_asked.append(changed(plain, start=Start(PIXELS, 0.8, MASK)))
    if "flux" not in family:
        all_asked.append(changed(plain, negative_prompt="a green tree"))
    pipeline = make()
    with counted(pipeline) as rows:
        company = painting(engine_of(pipeline, max_batch=64), lambda engine: together(engine, all_asked, "base"))
    assert len(rows) == 5
    for picture, wanted in zip(company, all_asked, strict=True):
        assert far(picture.image, expected(make, wanted)) <= 1
    images = [picture.image for picture in company]
    assert all(far(one, other) > 1 for index, one in enumerate(images) for other in images[:index])


@pytest.mark.parametrize("family", INPAINT)
def test_what_a_mask_marks_is_the_inpainting_pipelines_and_all_else_the_pictures_own(family: str) -> None:
    make, kind, guidance = INPAINT[family]
    wanted = asked(guidance_scale=guidance, start=Start(PIXELS, 1.0, MASK))
    picture = painting(engine_of(make()), lambda engine: engine.paint(wanted, "base")).image
    assert np.array_equal(picture[MASK == 0], PIXELS[MASK == 0])
    built = {"sdxl": {"add_watermarker": False}, "sd": {"requires_safety_checker": False}}.get(family, {})
    called = {"max_sequence_length": tiny.TEXT} if family in ("flux", "sd3") else {}
    pipeline = kind(**make().components, **built)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        prompt=wanted.request.prompt, image=PIL.Image.fromarray(PIXELS), mask_image=PIL.Image.fromarray(MASK), strength=1.0,
        width=32, height=32, num_inference_steps=3, guidance_scale=guidance, generator=torch.Generator().manual_seed(7),
        output_type="latent", **called,
    ).images  # fmt: skip
    plain = family_of(make()).decode(latents, 32, 32)[0]  # the pipeline of SD3 would leave out the autoencoder's shift
    assert np.array_equal(picture[MASK > 0], plain[MASK > 0])


def test_previews_and_steps_are_told_on_the_loop_and_change_nothing() -> None:
    steps: list[tuple[int, int]] = []
    shown: list[tuple[int, int, int, tuple[int, ...]]] = []

    async def work(engine: InferenceEngine) -> PaintedImage:
        loop = asyncio.get_running_loop()

        def tell(index: int, done: int, total: int, image: Image) -> None:
            assert asyncio.get_running_loop() is loop
            shown.append((index, done, total, image.shape))

        wanted = engine.paint(asked(steps=6), "base", on_step=lambda *told: steps.append(told), previews=Previews(2, tell))
        picture, _ = await asyncio.gather(wanted, engine.paint(asked(1, steps=6), "base"))
        await asyncio.sleep(0)
        return picture

    picture = painting(engine_of(tiny.flux()), work)
    assert steps == [(done, 6) for done in range(1, 7)]
    assert shown == [(0, 2, 6, (32, 32, 3)), (0, 4, 6, (32, 32, 3))]
    assert far(picture.image, expected(tiny.flux, asked(steps=6))) <= 1


@pytest.mark.parametrize("rows", [1, 3])
def test_no_forward_has_more_rows_than_fit(rows: int) -> None:
    pipeline = tiny.sd()
    all_asked = [asked(seed, guidance_scale=5.0, regions=MOON) for seed in range(3)]
    with counted(pipeline) as forwards:
        pictures = painting(engine_of(pipeline, max_batch=rows), lambda engine: together(engine, all_asked, "base"))
    assert max(forwards) <= rows
    assert sum(forwards) == 3 * 3 * 4
    for picture, wanted in zip(pictures, all_asked, strict=True):
        assert far(picture.image, expected(tiny.sd, wanted)) <= 1


def test_rows_are_as_many_as_memory_allows() -> None:
    async def work(engine: InferenceEngine) -> None:
        await asyncio.gather(*[engine.paint(asked(seed), "base") for seed in range(3)])
        assert (engine.load.forwards, engine.load.rows) == (9, 9)

    painting(engine_of(tiny.flux(), memory=1), work)


def test_half_precision_is_kept_where_a_pipeline_changes_the_autoencoders_meanwhile() -> None:
    pipeline = tiny.sdxl().to(torch.bfloat16)
    plain = asked(guidance_scale=5.0)
    all_asked = [plain, changed(plain, start=Start(PIXELS, 1.0, MASK)), changed(plain, start=Start(PIXELS, 0.7))]
    pictures = painting(engine_of(pipeline), lambda engine: together(engine, all_asked * 2, "base"))
    assert pipeline.vae.dtype == torch.bfloat16
    assert np.array_equal(pictures[1].image[MASK == 0], PIXELS[MASK == 0])
    assert all(far(one.image, other.image) > 8 for one, other in zip(pictures[:2], pictures[1:3], strict=True))


@pytest.mark.parametrize(
    ("field", "start"),
    [
        ("start.image", Start(PIXELS[:16], 0.5)),
        ("start.strength", Start(PIXELS, 1.5)),
        ("start.mask", Start(PIXELS, 0.5, MASK[:16])),
        ("start.mask", Start(PIXELS, 0.5, MASK * 0)),
    ],
)
def test_a_picture_or_mask_that_cannot_be_used_is_refused_by_name(field: str, start: Start) -> None:
    with pytest.raises(InvalidInput) as caught:
        painting(engine_of(tiny.flux()), lambda engine: engine.paint(asked(start=start), "base"))
    assert caught.value.field == field
