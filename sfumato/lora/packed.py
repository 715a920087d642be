"""Many adapters trained in one forward: row block k of the batch goes through adapter k and no other.

The base weights are shared, so their products run once over all rows; each adapter adds a batched product of its own. Gradients
of one adapter depend on its own rows only: trained together or alone, an adapter is the same up to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidInput
from sfumato.lora.adapter import Adapter


class PackedLora:
    """``len(seeds)`` adapters of one rank on the linears of ``model`` whose name matches ``targets`` in full.

    ``a[name]`` is ``[adapters, rank, in]`` (normal, deviation 1/rank, from each adapter's own seed), ``b[name]`` is
    ``[adapters, out, rank]`` (zero, so an untrained adapter changes nothing). Both float32 on the weights' device.
    """

    def __init__(self, model: nn.Module, targets: str, rank: int, seeds: Sequence[int]) -> None:
        pattern = re.compile(targets)
        self._modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and pattern.fullmatch(name)}
        if not self._modules:
            raise InvalidInput("targets", "no linear of the model has such a name.")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        for name, module in self._modules.items():
            device = module.weight.device
            a = torch.stack([torch.randn(rank, module.in_features, generator=g) for g in generators]) / rank
            self.a[name] = a.to(device).requires_grad_()
            self.b[name] = torch.zeros(len(seeds), module.out_features, rank, device=device, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        """All factors, for an optimiser."""
        return [*self.a.values(), *self.b.values()]

    def freeze(self) -> None:
        """No gradients for these adapters any more."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While open, the model's linears add these adapters. Weights are never written."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        a, b = self.a[name], self.b[name]

        def add_update(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows = inputs[0].reshape(a.shape[0], -1, a.shape[2]).to(a.dtype)
            update = torch.bmm(torch.bmm(rows, a.transpose(1, 2)), b.transpose(1, 2))
            return output + update.reshape(output.shape).to(output.dtype)

        return add_update

    def adapter(self, index: int, metadata: Mapping[str, str]) -> Adapter:
        """Adapter ``index`` as plain factors on the CPU."""
        factors = {name: (self.a[name][index].detach().cpu().clone(), self.b[name][index].detach().cpu().clone()) for name in self.a}
        return Adapter(factors, metadata)
