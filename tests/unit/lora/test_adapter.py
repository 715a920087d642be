"""The algebra of adapters against dense float64 products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.errors import InvalidInput
from sfumato.lora.adapter import Adapter, combine, compress, delta, differences, mean, norm, padded, scale, stack

MODULES = {"q": (7, 5), "mlp": (4, 9), "out": (6, 6)}  # in, out


def adapter(seed: int, rank: int, names: tuple[str, ...] = tuple(MODULES), dtype: torch.dtype = torch.float32) -> Adapter:
    """Random factors; the rank differs from module to module, from ``rank`` upwards."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for more, name in enumerate(names):
        size_in, size_out = MODULES[name]
        a = torch.randn(rank + more, size_in, generator=generator, dtype=dtype)
        factors[name] = (a, torch.randn(size_out, rank + more, generator=generator, dtype=dtype))
    return Adapter(factors)


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


@settings(max_examples=25, deadline=None)
@given(several, st.lists(st.floats(-3, 3), min_size=5, max_size=5))
def test_in_float64_sums_are_exact_to_its_rounding(parts: list[tuple[int, int, tuple[str, ...]]], weights: list[float]) -> None:
    adapters = [adapter(*part, dtype=torch.float64) for part in parts]
    used = weights[: len(adapters)]
    total = combine(adapters, used)
    for name, (a, b) in total.factors.items():
        expected = torch.stack([w * dense(one, name) for one, w in zip(adapters, used, strict=True)]).sum(0)
        torch.testing.assert_close(b @ a, expected, rtol=1e-12, atol=1e-12)
        assert a.shape[0] == sum(one.ranks[name] for one in adapters if name in one.factors)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 12), st.integers(1, 4))
def test_compressing_a_sum_is_compressing_the_dense_sum(seed: int, rank: int, kept: int, copies: int) -> None:
    """Copies make the factors rank deficient, which a division by small singular values would show."""
    one, other = adapter(seed, rank, dtype=torch.float64), adapter(seed + 1, 1, ("q",), dtype=torch.float64)
    result = compress(stack([one] * copies + [other]), kept)
    for name, (a, b) in result.adapter.factors.items():
        u, s, vh = torch.linalg.svd(copies * dense(one, name) + dense(other, name), full_matrices=False)
        torch.testing.assert_close(b @ a, u[:, :kept] * s[:kept] @ vh[:kept], rtol=1e-9, atol=1e-9)


@given(several, several)
@settings(max_examples=25, deadline=None)
def test_differences_are_those_of_dense_updates(
    left: list[tuple[int, int, tuple[str, ...]]], right: list[tuple[int, int, tuple[str, ...]]]
) -> None:
    one, other = mean([adapter(*part) for part in left]), mean([adapter(*part) for part in right])
    for name, difference in differences(one, other).items():
        wanted = float(dense(other, name).norm())
        expected = float((dense(one, name) - dense(other, name)).norm()) / wanted if wanted else float("inf")
        assert difference == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert max(differences(one, one).values()) < 1e-7


def test_padding_changes_no_update_and_halves_are_weighted_in_single() -> None:
    one = adapter(0, 1)
    wide = padded(one, 5)
    assert set(wide.ranks.values()) == {5}
    assert max(differences(wide, one).values()) < 1e-7
    half = Adapter({name: (a.half(), b.half()) for name, (a, b) in one.factors.items()})
    for name in MODULES:
        torch.testing.assert_close(dense(mean([half] * 3), name), dense(half, name), rtol=1e-6, atol=1e-6)


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
    assert average.ranks == {"q": 6, "mlp": 9, "out": 12}
    assert set(result.adapter.ranks.values()) == {2}
    assert result.errors["q"] < 1e-6  # of rank 2; the others are of 3 and 4


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
    with pytest.raises(InvalidInput, match="2 finite numbers"):
        combine([adapter(0, 1), adapter(1, 1)], [1.0])
    with pytest.raises(InvalidInput, match="finite"):
        scale(adapter(0, 1), float("inf"))
    with pytest.raises(InvalidInput):
        mean([adapter(0, 1, ("q",)), Adapter({"q": (torch.ones(1, 3), torch.ones(3, 1))})])
    with pytest.raises(InvalidInput):
        compress(adapter(0, 2), 0)
