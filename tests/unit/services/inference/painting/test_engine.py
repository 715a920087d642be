"""The inference engine: one picture alone, and many in the same forwards."""

from __future__ import annotations

import numpy as np
import pytest

from services.inference.painting.engine import InferenceEngine, PaintedImage, PaintRequest
from sfumato.diffusion.loading import load_pipeline
from sfumato.lora.fuse import Fuser
from sfumato.types import GenerateRequest
from sfumato.vista.weights import locate
from tests.unit.services.inference.painting.engines import MAKERS, adapter, asked, bare, counted, engine_of, painting, together

WANTED = ((1, "a full moon over the lake", 3), (2, "the red house", 5), (1, "a green tree at night", 2), (9, "a boat", 5))


@pytest.mark.parametrize("family", MAKERS)
def test_alone_a_picture_is_the_bare_pipelines_bit_for_bit(family: str) -> None:
    make, guidance = MAKERS[family]
    wanted = asked(guidance_scale=guidance)
    picture = painting(engine_of(make()), lambda engine: engine.paint(wanted, "base"))
    assert np.array_equal(picture.image, bare(make(), wanted.request))
    assert (picture.seed, picture.version) == (7, "base")


@pytest.mark.parametrize("family", MAKERS)
def test_prompts_seeds_and_step_counts_share_forwards_and_keep_their_pictures(family: str) -> None:
    make, guidance = MAKERS[family]
    pipeline = make()
    all_asked = [asked(seed, prompt, steps=steps, guidance_scale=guidance) for seed, prompt, steps in WANTED]
    with counted(pipeline) as rows:
        pictures = painting(engine_of(pipeline), lambda engine: together(engine, all_asked, "base"))
    each = 2 if family in ("sd", "sdxl", "sd3") else 1
    assert rows == [each * sum(steps > done for _, _, steps in WANTED) for done in range(5)]
    for picture, wanted in zip(pictures, all_asked, strict=True):
        assert picture.seed == wanted.request.seed
        assert np.abs(picture.image.astype(int) - bare(make(), wanted.request)).max() <= 1  # the same but for rounding


def test_the_shipped_model_alone_and_in_company_and_fused() -> None:
    pipeline, fused = (load_pipeline(locate("generator")) for _ in range(2))
    update = adapter(pipeline.transformer, size=0.01)
    Fuser(fused.transformer).fuse(update)
    requests = [GenerateRequest("a full moon over a lake", seed, 64, 64, steps) for seed, steps in ((1, 4), (2, 6))]

    async def work(engine: InferenceEngine) -> tuple[PaintedImage, list[PaintedImage]]:
        engine.prepare("better", update)
        wanted = [PaintRequest(each) for each in requests]
        return await engine.paint(wanted[0], "better"), await together(engine, wanted, "better")

    with counted(pipeline) as rows:
        alone, company = painting(engine_of(pipeline), work)
    assert rows == [1] * 4 + [2] * 4 + [1] * 2
    expected = [bare(fused, each) for each in requests]
    assert np.array_equal(alone.image, expected[0])
    for picture, wanted in zip(company, expected, strict=True):
        assert np.abs(picture.image.astype(int) - wanted).max() <= 1
