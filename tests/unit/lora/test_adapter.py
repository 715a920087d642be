"""The algebra of adapters against dense float64 products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InvalidInput
from sfumato.lora.adapter import Adapter, combine, compress, delta, mean, norm, scale, stack

MODULES = {"q": (7, 5), "mlp": (4, 9), "out": (6, 6)}  # in, out


def adapter(seed: int, rank: int, names: tuple[str, ...] = tuple(MODULES)) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: MODULES[name] for name in names}
    return Adapter(
        {n: (torch.randn(rank, i, generator=generator), torch.randn(o, rank, generator=generator)) for n, (i, o) in shapes.items()}
    )


def dense(one: Adapter, name: str) -> Tensor:
    """The update in float64, zero where the adapter has no such module."""
    size_in, size_out = MODULES[name]
    if name not in one.factors:
        return torch.zeros(size_out, size_in, dtype=torch.float64)
    a, b = one.factors[name]
    return b.double() @ a.double()


subsets = st.lists(st.sampled_from(sorted(MODULES)), min_size=1, unique=True).map(tuple)
several = st.lists(st.tuples(st.integers(0, 999), st.integers(1, 4), subsets), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(several)
def test_the_mean_is_the_mean_of_products_over_the_union_of_modules(parts: list[tuple[int, int, tuple[str, ...]]]) -> None:
    adapters = [adapter(*part) for part in parts]
    average = mean(adapters)
    assert set(average.factors) == {name for one in adapters for name in one.factors}
    for name in average.factors:
        expected = torch.stack([dense(one, name) for one in adapters]).mean(0)
        torch.testing.assert_close(dense(average, name), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(several, st.lists(st.floats(-3, 3), min_size=5, max_size=5))
def test_a_stack_is_the_weighted_sum(parts: list[tuple[int, int, tuple[str, ...]]], weights: list[float]) -> None:
    adapters = [adapter(*part) for part in parts]
    used = weights[: len(adapters)]
    total = stack(adapters, used)
    for name in total.factors:
        expected = torch.stack([w * dense(one, name) for one, w in zip(adapters, used, strict=True)]).sum(0)
        torch.testing.assert_close(dense(total, name), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 12))
def test_compression_is_the_truncated_svd_and_reports_what_it_lost(seed: int, rank: int, kept: int) -> None:
    one = adapter(seed, rank)
    result = compress(one, kept)
    lost = total = 0.0
    for name in one.factors:
        full = dense(one, name)
        u, s, vh = torch.linalg.svd(full, full_matrices=False)
        best = u[:, :kept] * s[:kept] @ vh[:kept]
        torch.testing.assert_close(dense(result.adapter, name), best, rtol=1e-3, atol=1e-4)
        assert result.adapter.ranks[name] <= kept
        measured = float((full - best).norm() / full.norm())
        assert result.errors[name] == pytest.approx(measured, abs=1e-6)
        lost, total = lost + float((full - best).norm() ** 2), total + float(full.norm() ** 2)
    assert result.error == pytest.approx((lost / total) ** 0.5, abs=1e-6)


def test_compressing_to_the_true_rank_loses_nothing() -> None:
    average = mean([adapter(1, 2), adapter(1, 2), adapter(1, 2)])
    result = compress(average, 2)
    assert average.ranks["out"] == 6
    assert result.adapter.ranks["out"] == 2
    assert result.error < 1e-6


def test_an_uncentred_constant_update_survives() -> None:
    ones = Adapter({"out": (torch.ones(1, 6), torch.ones(6, 1))})  # a centred PCA would lose all of it
    torch.testing.assert_close(delta(compress(ones, 1).adapter, "out"), torch.ones(6, 6))


def test_a_zero_update_compresses_to_zero() -> None:
    nothing = Adapter({"out": (torch.randn(3, 6), torch.zeros(6, 3))})
    result = compress(nothing, 2)
    assert result.error == 0
    assert not delta(result.adapter, "out").any()


@given(st.integers(0, 99), st.floats(-4, 4))
def test_scale_and_norm(seed: int, factor: float) -> None:
    one = adapter(seed, 3)
    whole = sum(float(dense(one, name).norm() ** 2) for name in MODULES) ** 0.5
    assert norm(one) == pytest.approx(whole, rel=1e-5)
    assert norm(scale(one, factor)) == pytest.approx(abs(factor) * whole, rel=1e-4, abs=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Adapter({})
    with pytest.raises(InvalidInput):
        Adapter({"q": (torch.ones(2, 5), torch.ones(7, 3))})
    with pytest.raises(InvalidInput):
        Adapter({"q": (torch.full((1, 5), float("nan")), torch.ones(7, 1))})
    with pytest.raises(InvalidInput):
        combine([], [])
    with pytest.raises(InvalidInput):
        mean([adapter(0, 1, ("q",)), Adapter({"q": (torch.ones(1, 3), torch.ones(3, 1))})])
    with pytest.raises(InvalidInput):
        compress(adapter(0, 2), 0)
