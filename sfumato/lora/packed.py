"""Many adapters trained in one forward: row block k of the batch goes through adapter k and no other.

The base weights are shared, so their products run once over all rows; each adapter adds a batched product of its own. Gradients
of one adapter depend on its own rows only: trained together or alone, an adapter is the same up to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sfumato.errors import InvalidInput
from sfumato.lora.adapter import Adapter

Factors = Mapping[str, Tensor]


class PackedLora:
    """Adapters of one rank on linears of ``model``, and frozen ones they stand on.

    ``a[name]`` is ``[adapters, rank, in]``, ``b[name]`` is ``[adapters, out, rank]``; ``frozen_base`` adds its own updates to the same
    rows and learns nothing (the base of the second fit is the model with the first one on it).
    """

    def __init__(self, model: nn.Module, a: Factors, b: Factors, frozen_base: PackedLora | None = None) -> None:
        self._model, self._frozen_base = model, frozen_base
        self.a = {name: factor.requires_grad_() for name, factor in a.items()}
        self.b = {name: factor.requires_grad_() for name, factor in b.items()}

    @classmethod
    def fresh(cls, model: nn.Module, targets: str, rank: int, seeds: Sequence[int], frozen_base: PackedLora | None = None) -> PackedLora:
        """Untrained adapters, one for each seed, on the linears whose name matches ``targets`` in full.

        A is normal with deviation 1/rank, drawn on the CPU from the adapter's own seed; B is zero, so that nothing changes yet.
        Both have at least single precision, on the weights' device.

        Raises:
            InvalidInput: no linear has such a name.
        """
        pattern = re.compile(targets)
        modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and pattern.fullmatch(name)}
        if not modules:
            raise InvalidInput("targets", "no linear of the model has such a name.")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        a: dict[str, Tensor] = {}
        b: dict[str, Tensor] = {}
        for name, module in modules.items():
            like = {"dtype": torch.promote_types(module.weight.dtype, torch.float32), "device": module.weight.device}
            a[name] = torch.stack([torch.randn(rank, module.in_features, generator=g) for g in generators]).div(rank).to(**like)
            b[name] = torch.zeros(len(seeds), module.out_features, rank, **like)
        return cls(model, a, b, frozen_base)

    def state(self) -> dict[str, Tensor]:
        """The factors that learn, as they stand, by name: ``a.<module>`` and ``b.<module>``, in the order of `parameters`."""
        named = {f"a.{name}": factor for name, factor in self.a.items()} | {f"b.{name}": factor for name, factor in self.b.items()}
        return {name: factor.detach() for name, factor in named.items()}

    def like(self, state: Factors, frozen_base: PackedLora | None) -> PackedLora:
        """Adapters on the same linears with the factors of a `state`, however many."""
        return PackedLora(self._model, {m: state[f"a.{m}"] for m in self.a}, {m: state[f"b.{m}"] for m in self.a}, frozen_base)

    def pick(self, adapters: Sequence[int]) -> PackedLora:
        """Copies of some of these adapters, with their frozen bases."""
        frozen_base = None if self._frozen_base is None else self._frozen_base.pick(adapters)
        return self.like({name: factor[list(adapters)] for name, factor in self.state().items()}, frozen_base)

    def finite(self) -> list[bool]:
        """Of each adapter, whether all its numbers are finite."""
        return torch.stack([factor.detach().isfinite().flatten(1).all(1) for factor in self.parameters()]).all(0).tolist()

    def parameters(self) -> list[Tensor]:
        """All factors that learn, for an optimiser."""
        return [*self.a.values(), *self.b.values()]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While open, the model's linears add these adapters and their frozen bases. Weights are never written."""
        modules = {name: self._model.get_submodule(name) for name in self.a}
        try:
            for name, module in modules.items():
                module.forward = self._forward(name, module)
            yield
        finally:
            for module in modules.values():
                vars(module).pop("forward", None)

    def _forward(self, name: str, module: nn.Module) -> Callable[[Tensor], Tensor]:
        base = self._frozen_base
        frozen = (None, None) if base is None else (base.a[name].detach(), base.b[name].detach())

        def forward(inputs: Tensor) -> Tensor:
            return _PackedLinear.apply(inputs, self.a[name], self.b[name], *frozen, module.weight, module.bias)  # pyright: ignore

        return forward

    def adapter(self, index: int, metadata: Mapping[str, str]) -> Adapter:
        """Adapter ``index`` as plain factors on the CPU, without its frozen base."""
        factors = {name: (self.a[name][index].detach().cpu().clone(), self.b[name][index].detach().cpu().clone()) for name in self.a}
        return Adapter(factors, metadata)


class _PackedLinear(torch.autograd.Function):
    """``y = x W^T + bias + (x A^T) B^T``, W frozen, rows in as many equal blocks as there are adapters.

    Written out because autograd would save and add more than is needed. The small factor always has the rank as its rows,
    ``[rank, rows]``: with eight columns instead, matrix products run at a quarter of their speed.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, frozen_a: Tensor | None, frozen_b: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        all_a = a if frozen_a is None else torch.cat([a, frozen_a], dim=1)
        all_b = b if frozen_b is None else torch.cat([b, frozen_b], dim=2)
        down = torch.bmm(all_a, _blocks(x, a).transpose(1, 2))
        y = functional.linear(x, weight, bias)
        _add_product(y, down.transpose(1, 2), all_b.transpose(1, 2))
        ctx.save_for_backward(x, all_a, all_b, down, weight)
        ctx.rank = a.shape[1]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, all_a, all_b, down, weight = ctx.saved_tensors
        blocks = _blocks(gradient, all_a)
        up = torch.bmm(all_b.transpose(1, 2), blocks.transpose(1, 2))
        into = None
        if ctx.needs_input_grad[0]:
            into = gradient.reshape(-1, gradient.shape[-1]) @ weight
            _add_product(into, up.transpose(1, 2), all_a)
            into = into.view(x.shape)
        into_a = torch.bmm(up[:, : ctx.rank], _blocks(x, all_a))
        into_b = torch.bmm(down[:, : ctx.rank], blocks).transpose(1, 2)
        return into, into_a, into_b, None, None, None, None


def _blocks(rows: Tensor, factor: Tensor) -> Tensor:
    """``[adapters, rows of each, width]`` in the factor's precision."""
    return rows.reshape(factor.shape[0], -1, rows.shape[-1]).to(factor.dtype)


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    """``to += left @ right`` block by block, in place where the precisions agree."""
    blocks = to.view(left.shape[0], -1, to.shape[-1])
    if to.dtype == left.dtype:
        blocks.baddbmm_(left, right)
    else:
        blocks.add_(torch.bmm(left, right).to(to.dtype))
