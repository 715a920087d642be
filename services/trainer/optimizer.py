"""AdamW over an adapter's factors, and its state as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfumato.lora.packed import PackedLora


class Optimizer:
    """AdamW without weight decay, on the factors of ``phi`` that learn."""

    def __init__(self, phi: PackedLora, learning_rate: float) -> None:
        self._phi = phi
        self._adam = torch.optim.AdamW(phi.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step against these gradients, in the order of ``phi.parameters()``."""
        for parameter, gradient in zip(self._phi.parameters(), gradients, strict=True):
            parameter.grad = gradient.contiguous()  # fused steps assume the layout of the factor without checking
        self._adam.step()
        self._adam.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Both moments of every factor and the steps made; nothing before the first step."""
        state: dict[str, Tensor] = {}
        for key, parameter in zip(self._phi.state(), self._phi.parameters(), strict=True):
            held = self._adam.state.get(parameter)
            if held:
                state |= {f"first.{key}": held["exp_avg"], f"second.{key}": held["exp_avg_sq"], "adam_steps": held["step"]}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state`; one without moments is the state before the first step."""
        if "adam_steps" not in state:
            return
        moments = {
            number: {"step": state["adam_steps"].clone(), "exp_avg": state[f"first.{key}"], "exp_avg_sq": state[f"second.{key}"]}
            for number, key in enumerate(self._phi.state())
        }
        self._adam.load_state_dict({"state": moments, "param_groups": self._adam.state_dict()["param_groups"]})
