"""Versions that come and go while pictures are in work; pictures that are given up; as many as may wait."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
import torch

from services.inference.painting.engine import InferenceEngine, PaintedImage
from sfumato.errors import Busy, InvalidInput, NotFound, Unavailable
from sfumato.lora.adapter import Adapter
from sfumato.types import Region
from tests.unit.diffusion import tiny
from tests.unit.services.inference.painting.engines import adapter, asked, bare, changed, counted, engine_of, painting, together
from tests.unit.services.inference.painting.test_scale import far, fused


async def until(true: Any) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_a_picture_keeps_its_version_while_others_are_prepared_and_its_own_is_dropped() -> None:
    pipeline = tiny.flux()
    first, second = (adapter(pipeline.transformer, seed=seed) for seed in (0, 1))
    engine = engine_of(pipeline)
    engine.prepare("first", first)
    swapped = []

    async def swap() -> PaintedImage:
        await asyncio.to_thread(engine.prepare, "second", second)
        swapped.append(engine.load.forwards)
        picture = await engine.paint(asked(), "second")
        await asyncio.to_thread(engine.drop, "first")
        return picture

    async def work(_: InferenceEngine) -> tuple[PaintedImage, PaintedImage]:
        swapping: list[asyncio.Task[PaintedImage]] = []
        long = asked(steps=150)
        old = await engine.paint(long, "first", on_step=lambda done, total: done == 2 and swapping.append(asyncio.create_task(swap())))
        new = await swapping[0]
        with pytest.raises(NotFound):
            await engine.paint(asked(), "first")
        return old, new

    old, new = painting(engine, work)
    assert (old.version, new.version) == ("first", "second")
    assert swapped[0] < 150  # it was in the middle of it
    alone = tiny.flux()
    engine = engine_of(alone)
    engine.prepare("first", first)
    assert far(old.image, painting(engine, lambda engine: engine.paint(asked(steps=150), "first")).image) <= 1
    assert far(new.image, fused("flux", second, 1.0)) <= 1


def test_versions_share_a_forward_and_each_picture_is_of_its_own() -> None:
    pipeline = tiny.flux()
    updates = [adapter(pipeline.transformer, seed=seed) for seed in (0, 1)]

    async def work(engine: InferenceEngine) -> list[PaintedImage]:
        for name, update in zip("ab", updates, strict=True):
            engine.prepare(name, update)
        return await together(engine, [asked(), asked()], "a", "b")

    with counted(pipeline) as rows:
        pictures = painting(engine_of(pipeline), work)
    assert rows == [2, 2, 2]
    for picture, update in zip(pictures, updates, strict=True):
        assert far(picture.image, fused("flux", update, 1.0)) <= 1


def test_an_adapter_that_does_not_fit_or_is_not_finite_when_fused_prepares_nothing() -> None:
    pipeline = tiny.flux()
    engine = engine_of(pipeline)
    good = adapter(pipeline.transformer)
    name, (a, b) = next(iter(good.factors.items()))
    for wrong in (Adapter({"nowhere": (a, b)}), Adapter({name: (a[:, :-1], b)}), Adapter({name: (a * 1e30, b * 1e30)})):
        with pytest.raises(InvalidInput) as caught:
            engine.prepare("wrong", wrong)
        assert caught.value.field == "adapter"
    assert engine.versions == ("base",)
    picture = painting(engine, lambda engine: engine.paint(asked(), "base"))
    assert np.array_equal(picture.image, bare(tiny.flux(), asked().request))


def test_who_gives_up_leaves_at_the_next_step_and_nobody_else_notices() -> None:
    async def work(engine: InferenceEngine) -> PaintedImage:
        steps: list[int] = []
        long = asyncio.create_task(engine.paint(asked(1, steps=200), "base", on_step=lambda done, _: steps.append(done)))
        await until(lambda: len(steps) > 2)
        waiting = asyncio.create_task(engine.paint(asked(2, steps=200), "base"))  # one place only: it waits
        await until(lambda: engine.load.waiting == 1)
        other = asyncio.create_task(engine.paint(asked(3), "base"))
        for task in (long, waiting):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        picture = await other
        assert engine.load.working + engine.load.waiting == 0
        assert engine.load.forwards < 200
        return picture

    picture = painting(engine_of(tiny.flux(), pictures=1), work)
    assert np.array_equal(picture.image, bare(tiny.flux(), asked(3).request))


def test_in_a_crowd_that_comes_and_goes_nobody_is_forgotten_and_every_picture_is_the_right_one() -> None:
    chance = random.Random(0)
    pipeline = tiny.sd()
    updates = [adapter(pipeline.unet, seed=seed) for seed in (0, 1)]
    all_asked = [asked(seed, steps=chance.randint(1, 9), scale=chance.choice([0.0, 0.5, 1.0]), guidance_scale=5.0) for seed in range(8)]
    named = [chance.choice("ab") for _ in all_asked]

    async def one(engine: InferenceEngine, index: int) -> PaintedImage | None:
        await asyncio.sleep(chance.random() / 20)
        try:
            patience = chance.random() / 20 if chance.random() < 0.3 else None
            return await asyncio.wait_for(engine.paint(all_asked[index], named[index]), patience)
        except TimeoutError:
            return None

    async def work(engine: InferenceEngine) -> tuple[list[PaintedImage], list[PaintedImage | None]]:
        for name, update in zip("ab", updates, strict=True):
            engine.prepare(name, update)
        alone = [await engine.paint(each, name) for each, name in zip(all_asked, named, strict=True)]
        crowd = await asyncio.gather(*[one(engine, index % len(all_asked)) for index in range(40)])
        await until(lambda: engine.load.working + engine.load.waiting == 0)
        assert engine._batcher._waiting == [] and not engine._batcher._slots and not engine._batcher._running
        return alone, crowd

    alone, crowd = painting(engine_of(pipeline, pictures=6, max_batch=7), work)
    assert sum(picture is not None for picture in crowd) > 20
    for index, picture in enumerate(crowd):
        if picture is not None:
            expected = alone[index % len(alone)]
            assert (picture.seed, picture.version) == (expected.seed, expected.version)
            assert far(picture.image, expected.image) <= 1


def test_more_than_may_wait_are_told_when_to_come_again_and_a_closing_engine_ends_what_it_has() -> None:
    async def work(engine: InferenceEngine) -> None:
        tasks = [asyncio.create_task(engine.paint(asked(seed, steps=20), "base")) for seed in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as caught:
            await engine.paint(asked(), "base")
        assert caught.value.retry_after >= 1
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await engine.paint(asked(), "base")
        assert [picture.seed for picture in await asyncio.gather(*tasks)] == [0, 1, 2]
        await closing

    painting(engine_of(tiny.flux(), pictures=2, waiting=1), work)


def test_a_forward_that_fails_fails_its_pictures_and_the_next_ones_are_painted() -> None:
    pipeline = tiny.flux()

    async def work(engine: InferenceEngine) -> PaintedImage:
        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("too large")

        hook = pipeline.transformer.register_forward_pre_hook(fail)
        for failed in await asyncio.gather(*[engine.paint(asked(seed), "base") for seed in (1, 2)], return_exceptions=True):
            assert isinstance(failed, torch.OutOfMemoryError)
        hook.remove()
        return await engine.paint(asked(), "base")

    assert np.array_equal(painting(engine_of(pipeline), work).image, bare(tiny.flux(), asked().request))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("prompt", {"prompt": " "}),
        ("prompt", {"prompt": "moon " * 12}),
        ("width", {"width": 33}),
        ("steps", {"steps": 0}),
        ("guidance_scale", {"guidance_scale": 3.0}),
        ("seed", {"seed": -1}),
        ("negative_prompt", {"negative_prompt": "a tree"}),
        ("regions[0].box", {"regions": (Region("moon", (0, 0, 33, 4)),)}),
        ("regions[0].strength", {"regions": (Region("moon", (0, 0, 4, 4), float("nan")),)}),
    ],
)
def test_what_the_model_cannot_paint_is_refused_by_name_before_it_takes_a_place(field: str, change: dict[str, Any]) -> None:
    async def work(engine: InferenceEngine) -> None:
        with pytest.raises(InvalidInput) as caught:
            await engine.paint(changed(asked(), **change), "base")
        assert caught.value.field == field
        assert (engine.load.working, engine.load.waiting, engine.load.forwards) == (0, 0, 0)

    painting(engine_of(tiny.flux()), work)
