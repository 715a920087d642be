"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

torch's own ``torch.optim.Muon`` takes only 2-D parameters and steps them one by one; here matrices of one shape are
orthogonalised in one batched Newton-Schulz iteration, which on small models is several times faster, and convolution
kernels are flattened to matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: a quintic Newton-Schulz iteration. ``[n, rows, columns]``."""
    a, b, c = 3.4445, -4.7750, 2.0315
    transposed = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if transposed else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Muon over parameters of two or more dimensions (kernels are flattened to ``[out, rest]``)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            shapes: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(param)
                average = state["momentum"].lerp_(param.grad, 1 - momentum)
                update = param.grad.lerp(average, momentum).flatten(1)
                shapes[(update.shape[0], update.shape[1])].append((param, update))
            for (rows, columns), items in shapes.items():
                steps = orthogonalize(torch.stack([update for _, update in items]))
                scale = max(1.0, rows / columns) ** 0.5
                for (param, _), step in zip(items, steps, strict=True):
                    param.add_(step.reshape(param.shape), alpha=-lr * scale)
