"""The denoiser's weights for pictures of any version and scale: pristine, fused, or with low-rank bypasses per row.

The network holds the pristine weights once. A version has its factors and, for scale 1, a fused copy of the weights it changes::

    all rows at scale 0                       the pristine weights, bit-identical
    all rows at scale 1 of one version        its fused weights ``W + B A``, swapped in by pointer
    any other mixture                         the pristine weights, and beside them ``y = W x + sum_k s_k[row] B_k (A_k x)``

No other scale needs a copy of the weights, and switching versions copies no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfumato.errors import InvalidInput
from sfumato.lora.adapter import Adapter, delta
from sfumato.lora.fuse import check_fits


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """An adapter's ``A [rank, in]`` and ``B [out, rank]`` by module, in the model's precision and on its device."""

    modules: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return sum(a.nbytes + b.nbytes for a, b in self.modules.values())


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """One version of the model in memory; without ``factors`` it is the base model. ``fused``: weights for scale 1, by parameter name."""

    name: str
    factors: LoraFactors | None
    fused: Mapping[str, Tensor] | None


@dataclass(frozen=True, eq=False)
class AdapterMix:
    """The weights of one picture: a version at a scale, and further adapters with their own scales."""

    version: LoadedVersion
    scale: float = 1.0
    extras: tuple[tuple[LoraFactors, float], ...] = ()

    def terms(self) -> list[tuple[LoraFactors, float]]:
        """Every adapter with a weight other than 0, with its weight."""
        own = [(self.version.factors, self.scale)] if self.version.factors is not None else []
        return [(factors, weight) for factors, weight in (*own, *self.extras) if weight != 0]

    @property
    def fused(self) -> LoadedVersion | None:
        """The version, when its fused weights alone give this picture; else None."""
        return self.version if self.version.fused is not None and self.scale == 1 and len(self.terms()) == 1 else None


class DenoiserWeights:
    """Switches the network's weights to what the rows of the next forward need. One thread at a time calls `ready`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._pristine = {name: parameter.data for name, parameter in model.named_parameters()}
        self._placed: Mapping[str, Tensor] = {}
        self._bypassed: tuple[LoraFactors, ...] = ()
        self._handles: list[RemovableHandle] = []
        self._scales: list[Tensor] = []

    def factors(self, adapter: Adapter) -> LoraFactors:
        """An adapter's factors in the network's precision and on its device.

        Raises:
            InvalidInput: it does not fit this model.
        """
        weights = check_fits(adapter, self._model)
        modules = {name: (a.to(weights[name]), b.to(weights[name])) for name, (a, b) in adapter.factors.items()}
        for name, (a, b) in modules.items():
            if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
                what = f"{name}: its numbers are too large for {weights[name].dtype}, the model's precision."
                raise InvalidInput("adapter", what, hint="Was its alpha edited, or its training diverging?")
        return LoraFactors(modules)

    @torch.no_grad()
    def version(self, name: str, adapter: Adapter | None, *, fuse: bool = True) -> LoadedVersion:
        """Prepare a version: fused in float32 from the pristine weights, as `sfumato.lora.fuse` does. The network is not changed.

        Raises:
            InvalidInput: the adapter does not fit this model.
        """
        if adapter is None:
            return LoadedVersion(name, None, None)
        factors = self.factors(adapter)
        if not fuse:
            return LoadedVersion(name, factors, None)
        fused = {}
        for module, (a, b) in adapter.factors.items():
            pristine = self._pristine[f"{module}.weight"]
            part = Adapter({module: (a.to(pristine.device), b.to(pristine.device))})
            fused[f"{module}.weight"] = (pristine.float() + delta(part, module).view(pristine.shape)).to(pristine.dtype)
        return LoadedVersion(name, factors, fused)

    def ready(self, rows: Sequence[tuple[AdapterMix, int]]) -> None:
        """Switch to the weights for a forward with these rows, in this order."""
        first = rows[0][0]
        if first.fused is not None and all(mix.fused is first.fused for mix, _ in rows):
            assert first.fused.fused is not None
            self._bypass([], [])
            self._place(first.fused.fused)
            return
        self._place({})
        mixtures = [(mix.terms(), count) for mix, count in rows]
        adapters = list(dict.fromkeys(factors for terms, _ in mixtures for factors, _ in terms))
        self._bypass(adapters, mixtures)

    def pristine(self) -> None:
        """Switch to the base model's weights."""
        self._bypass([], [])
        self._place({})

    def _place(self, weights: Mapping[str, Tensor]) -> None:
        if weights is self._placed or not (weights or self._placed):
            return
        for name in self._placed.keys() - weights.keys():
            self._model.get_parameter(name).data = self._pristine[name]
        for name, weight in weights.items():
            self._model.get_parameter(name).data = weight
        self._placed = weights

    def _bypass(self, adapters: list[LoraFactors], mixtures: Sequence[tuple[list[tuple[LoraFactors, float]], int]]) -> None:
        """Register the adapters as forward hooks of the layers they change, and set each row's scales."""
        if tuple(adapters) != self._bypassed:
            for handle in self._handles:
                handle.remove()
            names = sorted({name for factors in adapters for name in factors.modules})
            self._handles = [self._hang(name, adapters) for name in names]
            self._bypassed = tuple(adapters)
        if adapters:
            self._scales = [self._by_row(factors, mixtures) for factors in adapters]

    def _by_row(self, adapter: LoraFactors, mixtures: Sequence[tuple[list[tuple[LoraFactors, float]], int]]) -> Tensor:
        """The scales of one adapter: ``[rows]``."""
        scales = [sum(weight for factors, weight in terms if factors is adapter) for terms, count in mixtures for _ in range(count)]
        like = next(iter(adapter.modules.values()))[0]
        return torch.tensor(scales, dtype=like.dtype, device=like.device)

    def _hang(self, name: str, adapters: Sequence[LoraFactors]) -> RemovableHandle:
        parts = [(index, *factors.modules[name]) for index, factors in enumerate(adapters) if name in factors.modules]

        def beside(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            for index, a, b in parts:
                low = _product(layer, args[0], a)
                scale = self._scales[index].view(-1, *[1] * (low.ndim - 1))
                output = output + _product(layer, low * scale, b)
            return output

        return self._model.get_submodule(name).register_forward_hook(beside)


def _product(layer: nn.Module, inputs: Tensor, factor: Tensor) -> Tensor:
    """``factor [out, in]`` applied to the last dimension of a linear's inputs, or to the channels of a 1x1 convolution's."""
    if isinstance(layer, nn.Conv2d):
        return nn.functional.conv2d(inputs, factor[..., None, None])
    return nn.functional.linear(inputs, factor)
