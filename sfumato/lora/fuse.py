"""Fusing adapters into a model, always from its pristine weights: unfusing adds up rounding, copying back does not."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidInput
from sfumato.lora.adapter import Adapter, delta
from sfumato.lora.modules import pointwise


def check_fits(adapter: Adapter, model: nn.Module) -> dict[str, Tensor]:
    """The model's weight for every module of the adapter: linear layers and 1x1 convolutions, all there and of the same shape.

    Raises:
        InvalidInput: naming the module that the model does not have, or has in another shape.
    """
    weights = {}
    for name, (a, b) in adapter.factors.items():
        try:
            weight = model.get_parameter(f"{name}.weight")
        except AttributeError as error:
            raise InvalidInput("adapter", f"the model has no weight of {name}.", hint="It is an adapter of another model.") from error
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear) and not pointwise(module):
            what = f"{name} is neither a linear layer nor a 1x1 convolution."
            raise InvalidInput("adapter", what, hint="It is an adapter of another model.")
        if weight.shape[:2] != (b.shape[0], a.shape[1]):
            shapes = f"the update is {b.shape[0]}x{a.shape[1]}, the weight {tuple(weight.shape)}"
            raise InvalidInput("adapter", f"{name}: {shapes}.", hint="It is an adapter of another model.")
        weights[name] = weight
    return weights


class Fuser:
    """Keeps a CPU copy of every weight it ever touched and writes ``W + scale * B A`` from it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._pristine: dict[str, Tensor] = {}
        self._name: Hashable = None

    def use(self, name: Hashable, load: Callable[[], Adapter | None]) -> None:
        """Fuse the adapter called ``name``, which ``load`` returns, unless it is fused already.

        Names are the caller's, one for one adapter, and not None. Raises what ``load`` and `fuse` raise; nothing changes then.
        """
        if name != self._name:
            self.fuse(load())
            self._name = name

    @torch.no_grad()
    def fuse(self, adapter: Adapter | None, scale: float = 1.0) -> None:
        """Make the model ``theta + scale * adapter``; ``None`` restores it bit for bit. Nothing changes if this raises.

        Raises:
            InvalidInput: a module the model does not have, or an update of another shape than its weight.
        """
        updates = {} if adapter is None else check_fits(adapter, self._model)
        self._name = None  # while it is written, the model has no name
        for name, pristine in self._pristine.items():
            if name not in updates:
                self._model.get_parameter(f"{name}.weight").copy_(pristine)
        for name, weight in updates.items():
            pristine = self._pristine.setdefault(name, weight.detach().cpu().clone())
            assert adapter is not None
            weight.copy_(pristine.float() + scale * delta(adapter, name).cpu().view(pristine.shape))
