"""The algebra of adapters (ArtAug section 3.4). An update is ``delta W = B A``; it is never formed except to be fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank updates by module name (from the denoiser): ``A [rank, in]`` and ``B [out, rank]``, any scale baked in.

    ``metadata`` is free text that travels with the file (where it came from); it never changes the update.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.factors:
            raise InvalidInput("adapter", "has no modules.")
        for name, (a, b) in self.factors.items():
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
                raise InvalidInput("adapter", f"{name}: A {tuple(a.shape)} and B {tuple(b.shape)} do not multiply.")
            if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
                raise InvalidInput("adapter", f"{name}: holds numbers that are not finite.")

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every module."""
        return {name: a.shape[0] for name, (a, _) in self.factors.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """An adapter of lower rank, and what it cost: ``||delta - delta'|| / ||delta||`` (Frobenius) by module and over all."""

    adapter: Adapter
    errors: Mapping[str, float]
    error: float


def delta(adapter: Adapter, module: str) -> Tensor:
    """The dense update ``B A`` of one module, ``[out, in]`` in float32."""
    a, b = adapter.factors[module]
    return b.float() @ a.float()


def scale(adapter: Adapter, factor: float) -> Adapter:
    """``factor`` times the update, baked into B."""
    return Adapter({name: (a, b * factor) for name, (a, b) in adapter.factors.items()}, adapter.metadata)


def combine(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Exactly ``sum_i w_i B_i A_i`` over the union of modules: ``[w_1 B_1 ... w_n B_n] [A_1; ...; A_n]``.

    Raises:
        InvalidInput: no adapters, or one module has different shapes in two of them.
    """
    if not adapters:
        raise InvalidInput("adapters", "there are none to combine.")
    names = sorted({name for adapter in adapters for name in adapter.factors})
    factors = {}
    for name in names:
        parts = [(adapter.factors[name], weight) for adapter, weight in zip(adapters, weights, strict=True) if name in adapter.factors]
        shapes = {(a.shape[1], b.shape[0]) for (a, b), _ in parts}
        if len(shapes) > 1:
            raise InvalidInput("adapters", f"{name} has different shapes in them: {sorted(shapes)}.", hint="Are they of one model?")
        factors[name] = (torch.cat([a for (a, _), _ in parts]), torch.cat([b * weight for (_, b), weight in parts], dim=1))
    return Adapter(factors)


def mean(adapters: Sequence[Adapter]) -> Adapter:
    """The mean of the products, not of the factors: exact, its rank the sum of the ranks.

    A module that some adapters do not have counts as zero there.
    """
    return combine(adapters, [1 / max(1, len(adapters))] * len(adapters))


def stack(iterations: Sequence[Adapter], scales: Sequence[float] | None = None) -> Adapter:
    """All iterations as one adapter: ``sum_k alpha_k phi_k`` (the product of a whole run, turned up and down as one)."""
    return combine(iterations, [1.0] * len(iterations) if scales is None else scales)


def compress(adapter: Adapter, rank: int) -> Compressed:
    """The best approximation of rank ``rank`` (Eckart-Young) by QR of the factors and an SVD of the small core.

    ``B = Q_B R_B``, ``A^T = Q_A R_A``, ``R_B R_A^T = U S V^T``; costs O((in + out) r^2), forms no dense update and centres
    nothing. The square roots of S go to both factors. Computed in float64.

    Raises:
        InvalidInput: ``rank`` is below 1.
    """
    if rank < 1:
        raise InvalidInput("rank", f"{rank} is below 1.")
    factors, errors, lost, total = {}, {}, 0.0, 0.0
    for name, (a, b) in adapter.factors.items():
        left, core_left = torch.linalg.qr(b.double())
        right, core_right = torch.linalg.qr(a.double().T)
        u, s, vh = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
        kept = min(rank, s.shape[0])
        root = s[:kept].sqrt()
        factors[name] = ((root[:, None] * (vh[:kept] @ right.T)).to(a.dtype), (left @ u[:, :kept] * root).to(b.dtype))
        module_lost, module_total = float(s[kept:].square().sum()), float(s.square().sum())
        errors[name] = (module_lost / module_total) ** 0.5 if module_total else 0.0
        lost, total = lost + module_lost, total + module_total
    return Compressed(Adapter(factors, adapter.metadata), errors, (lost / total) ** 0.5 if total else 0.0)


def norm(adapter: Adapter) -> float:
    """The Frobenius norm of all updates together, from the factors alone: ``||BA||^2 = tr((B^T B)(A A^T))``."""
    total = 0.0
    for a, b in adapter.factors.values():
        total += float(((b.double().T @ b.double()) * (a.double() @ a.double().T)).sum())
    return max(0.0, total) ** 0.5
