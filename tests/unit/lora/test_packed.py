"""Packed adapters against the same adapters written out one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import InvalidInput
from sfumato.lora.packed import PackedLora

TARGETS = r"\d"


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 5, bias=False)).double()
    return net.requires_grad_(False)


def packed(model: nn.Module, rank: int, seeds: list[int], under: PackedLora | None = None) -> PackedLora:
    """Fresh adapters whose B is not zero, so that all gradients are there."""
    lora = PackedLora.fresh(model, TARGETS, rank, seeds, under)
    for name, factor in lora.b.items():
        lora.b[name] = torch.randn(factor.shape, generator=torch.Generator().manual_seed(7), dtype=factor.dtype).requires_grad_()
    return lora


def by_hand(model: nn.Sequential, rows: Tensor, loras: list[PackedLora], index: int) -> Tensor:
    """``x -> (W + sum B A) x + bias``, adapter ``index`` of every pack."""
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            weight = module.weight + sum(lora.b[name][index] @ lora.a[name][index] for lora in loras)
            rows = nn.functional.linear(rows, weight, module.bias)
        else:
            rows = module(rows)
    return rows


def test_every_block_of_rows_goes_through_its_own_adapter_and_the_frozen_one_under_it(model: nn.Sequential) -> None:
    under = packed(model, 3, [1, 2])
    lora = packed(model, 2, [3, 4], under)
    rows = torch.randn(4, 7, 6, dtype=torch.float64, requires_grad=True)  # two rows of seven tokens for each adapter
    with lora.attached():
        answer = model(rows)
    loss = answer.square().sum()
    gradients = torch.autograd.grad(loss, [rows, *lora.parameters()])
    expected = torch.cat([by_hand(model, rows[2 * k : 2 * k + 2], [lora, under], k) for k in range(2)])
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), [rows, *lora.parameters()]))
    torch.testing.assert_close(model(rows), by_hand(model, rows, [], 0))  # nothing stays attached


def test_gradients_agree_with_finite_differences(model: nn.Sequential) -> None:
    lora = packed(model, 2, [5, 6], packed(model, 1, [7, 8]))
    rows = torch.randn(2, 3, 6, dtype=torch.float64)
    factors = lora.parameters()

    def loss(*_: Tensor) -> Tensor:
        with lora.attached():
            return model(rows).square().sum()

    assert torch.autograd.gradcheck(loss, factors)


def test_base_weights_of_half_precision_keep_theirs_and_adapters_have_single(model: nn.Sequential) -> None:
    half = model.bfloat16()
    lora = packed(half, 2, [1])
    rows = torch.randn(3, 6, dtype=torch.bfloat16)
    with lora.attached():
        answer = half(rows)
    answer.float().sum().backward()
    assert answer.dtype == torch.bfloat16
    for factor in lora.parameters():
        assert factor.dtype == torch.float32
        assert factor.grad is not None and bool(torch.isfinite(factor.grad).all())
    torch.testing.assert_close(answer.float(), by_hand(half.float(), rows.float(), [lora], 0), rtol=0.05, atol=0.05)


def test_an_untrained_adapter_changes_nothing_and_depends_on_its_own_seed_alone(model: nn.Sequential) -> None:
    pair, alone = PackedLora.fresh(model, TARGETS, 2, [1, 2]), PackedLora.fresh(model, TARGETS, 2, [2])
    rows = torch.randn(2, 6, dtype=torch.float64)
    plain = model(rows)
    with pair.attached():
        assert torch.equal(model(rows), plain)
    for name in pair.a:
        assert torch.equal(pair.a[name][1], alone.a[name][0])
    assert torch.equal(pair.adapter(1, {}).factors["0"][0], alone.a["0"][0])


def test_names_that_fit_no_linear_are_refused(model: nn.Sequential) -> None:
    with pytest.raises(InvalidInput):
        PackedLora.fresh(model, "encoder", 2, [1])
