"""Alpha as a knob of every picture: the base exactly, the fused model, and all between and beyond, in the same forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from services.inference.painting.engine import InferenceEngine, PaintedImage
from services.inference.painting.weights import AdapterMix, DenoiserWeights
from sfumato.errors import Busy, InvalidInput, NotFound
from sfumato.lora.adapter import Adapter, combine, delta
from sfumato.lora.fuse import Fuser
from sfumato.types import Image
from tests.unit.services.inference.painting.engines import MAKERS, adapter, asked, bare, counted, engine_of, network, painting, together


def fused(family: str, update: Adapter, scale: float, seed: int = 7) -> Image:
    """A bare pipeline's picture after the fuser wrote the adapter into its weights."""
    make, guidance = MAKERS[family]
    pipeline = make()
    Fuser(network(pipeline)).fuse(update, scale)
    return bare(pipeline, asked(seed, guidance_scale=guidance).request)


def far(one: Image, other: Image) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize("family", MAKERS)
def test_scale_0_is_the_base_and_scale_1_the_fused_model_bit_for_bit_and_any_mixture_shares_forwards(family: str) -> None:
    make, guidance = MAKERS[family]
    pipeline = make()
    update = adapter(network(pipeline))
    scales = [0.0, 0.4, 1.0, 1.7]
    all_asked = [asked(guidance_scale=guidance, scale=scale) for scale in scales]

    async def work(engine: InferenceEngine) -> tuple[list[PaintedImage], list[PaintedImage]]:
        engine.prepare("better", update)
        alone = [await engine.paint(each, "better") for each in all_asked]
        with counted(pipeline) as rows:
            company = await together(engine, all_asked, "better")
        each = 2 if family in ("sd", "sdxl", "sd3") else 1
        assert rows == [each * len(scales)] * 3
        return alone, company

    alone, company = painting(engine_of(pipeline), work)
    expected = [fused(family, update, scale) for scale in scales]
    assert np.array_equal(alone[0].image, expected[0])
    assert np.array_equal(alone[2].image, expected[2])
    assert far(expected[0], expected[1]) > 8 < far(expected[1], expected[2])  # it shows
    for one, other, wanted in zip(alone, company, expected, strict=True):
        assert far(one.image, wanted) <= 1 >= far(other.image, wanted)


def mixes(model: nn.Module, scales: Sequence[float], update: Adapter) -> tuple[DenoiserWeights, list[tuple[AdapterMix, int]]]:
    weights = DenoiserWeights(model)
    version = weights.version("v", update)
    return weights, [(AdapterMix(version, scale), 1) for scale in scales]


def test_a_row_at_scale_0_is_the_base_to_the_bit_beside_rows_that_are_not() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 5))
    weights, rows = mixes(model, [0.3, 0.0, 1.0], Adapter({"0": (torch.randn(3, 9), torch.randn(16, 3))}))
    x = torch.randn(3, 7, 9)
    base = model(x)
    weights.ready(rows)
    mixed = model(x)
    assert torch.equal(mixed[1], base[1])
    assert (mixed[0] - base[0]).abs().max() > 0.1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.floats(-2, 2), st.integers(1, 3)), min_size=1, max_size=5), st.integers(0, 99))
def test_every_row_has_its_own_sum_of_adapters(rows: list[tuple[float, float, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    model: Any = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)).double()
    first = Adapter({"0": (draw(2, 6), draw(4, 2)), "1": (draw(1, 4), draw(4, 1))})
    second = Adapter({"1": (draw(3, 4), draw(4, 3))})
    weights = DenoiserWeights(model)
    version, extra = weights.version("v", first), weights.factors(second)
    weights.ready([(AdapterMix(version, scale, ((extra, weight),)), count) for scale, weight, count in rows])
    x = draw(sum(count for *_, count in rows), 6)
    answer, at = model(x), 0
    weights.pristine()
    for scale, weight, count in rows:
        whole = combine([first, second], [scale, weight])
        for row in range(at, at + count):
            hidden = x[row]
            for name, layer in model.named_children():
                update = whole.factors[name][1] @ whole.factors[name][0]
                hidden = (layer.weight + update) @ hidden + layer.bias
            torch.testing.assert_close(answer[row], hidden, rtol=1e-9, atol=1e-9)
        at += count


def test_no_value_of_the_scale_has_a_copy_of_the_weights() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 8))
    update = Adapter({"0": (torch.ones(1, 8), torch.ones(8, 1))})
    weights, rows = mixes(model, [0.0, 0.25, 0.5, 1.0, 1.5], update)
    pristine, base = model[0].weight.data_ptr(), model[0].weight.clone()
    places = {}
    for mix, count in rows:
        weights.ready([(mix, count)])
        places[mix.scale] = model[0].weight.data_ptr()
    assert {scale for scale, place in places.items() if place != pristine} == {1.0}
    torch.testing.assert_close(rows[3][0].version.fused["0.weight"] - base, delta(update, "0"))  # pyright: ignore[reportOptionalSubscript]
    weights.ready(rows[:1])
    assert torch.equal(model[0].weight, base)
    assert not model[0]._forward_hooks  # nothing is left beside it


def test_a_version_without_fused_weights_is_the_same_to_rounding() -> None:
    pipeline = MAKERS["flux"][0]()
    update = adapter(pipeline.transformer)
    engine = engine_of(pipeline, fuse=False)
    engine.prepare("better", update)
    picture = painting(engine, lambda engine: engine.paint(asked(), "better"))
    assert far(picture.image, fused("flux", update, 1.0)) <= 1


def test_adapters_on_top_add_to_the_version_and_the_least_recently_used_leave() -> None:
    pipeline = MAKERS["flux"][0]()
    own, style, other = (adapter(pipeline.transformer, seed=seed) for seed in (0, 1, 2))
    size = DenoiserWeights(pipeline.transformer).factors(style).bytes

    async def work(engine: InferenceEngine) -> PaintedImage:
        engine.prepare("better", own)
        engine.load_extra("style", style)
        with pytest.raises(NotFound, match="never"):
            await engine.paint(asked(), "better", [("never", 1.0)])
        styled, _ = await together(engine, [asked(scale=0.5), asked()], "better", extras=[("style", 0.7)])
        engine.load_extra("other", other)
        assert engine.extras == ("style", "other")
        await engine.paint(asked(steps=1), "better", [("style", 0.1)])
        engine.load_extra("third", adapter(pipeline.transformer, seed=3))
        assert engine.extras == ("style", "third")
        with pytest.raises(Busy) as left:
            await engine.paint(asked(), "better", [("other", 1.0)])
        assert left.value.retry_after > 0
        with pytest.raises(InvalidInput, match="rank") as large:
            engine.load_extra("large", adapter(pipeline.transformer, rank=64))
        assert large.value.field == "model"
        with engine._extras.used([("style", 1.0), ("third", 1.0)]), pytest.raises(Busy):  # those in use stay
            engine.load_extra("other", other)
        engine.load_extra("other", other)
        return styled

    styled = painting(engine_of(pipeline, extras=int(2.5 * size)), work)
    assert far(styled.image, fused("flux", combine([own, style], [0.5, 0.7]), 1.0)) <= 1


@pytest.mark.parametrize("scale", [-0.1, 4.1, float("nan"), float("inf")])
def test_a_scale_out_of_range_is_refused_by_name(scale: float) -> None:
    with pytest.raises(InvalidInput) as caught:
        painting(engine_of(MAKERS["flux"][0]()), lambda engine: engine.paint(asked(scale=scale), "base"))
    assert caught.value.field == "adapter_scale"
