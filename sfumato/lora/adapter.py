"""The algebra of adapters (ArtAug section 3.4). An update is ``delta W = B A``; it is never formed except to be fused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank updates by module name (from the denoiser): ``A [rank, in]`` and ``B [out, rank]``, any scale baked in.

    ``metadata`` is free text that travels with the file (where it came from); it never changes the update. ``pointwise`` has the modules
    that are 1x1 convolutions: their factors are matrices here and have two more dimensions of 1 in files.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    pointwise: frozenset[str] = frozenset()

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
    """An adapter of lower rank, and its relative error: ``||delta - delta'|| / ||delta||`` (Frobenius) by module and over all."""

    adapter: Adapter
    errors: Mapping[str, float]
    error: float


def delta(adapter: Adapter, module: str) -> Tensor:
    """The dense update ``B A`` of one module, ``[out, in]`` in float32."""
    a, b = adapter.factors[module]
    return b.float() @ a.float()


def scale(adapter: Adapter, factor: float) -> Adapter:
    """``factor`` times the update, baked into B.

    Raises:
        InvalidInput: the factor is not finite.
    """
    if not math.isfinite(factor):
        raise InvalidInput("scale", f"{factor} is not a finite number.")
    factors = {name: (a, single(b) * factor) for name, (a, b) in adapter.factors.items()}
    return Adapter(factors, adapter.metadata, adapter.pointwise)


def padded(adapter: Adapter, rank: int | None = None) -> Adapter:
    """The same update with at least ``rank`` in every module (the largest rank, if it is None), filled up with zeros."""
    rank = max(adapter.ranks.values()) if rank is None else rank
    factors = {}
    for name, (a, b) in adapter.factors.items():
        missing = max(0, rank - a.shape[0])
        factors[name] = (nn.functional.pad(a, (0, 0, 0, missing)), nn.functional.pad(b, (0, missing)))
    return Adapter(factors, adapter.metadata, adapter.pointwise)


def single(tensor: Tensor) -> Tensor:
    """Half precision to float32, so that weighting adds no rounding to a file's own; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def combine(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Exactly ``sum_i w_i B_i A_i`` over the union of modules: ``[w_1 B_1 ... w_n B_n] [A_1; ...; A_n]``.

    Raises:
        InvalidInput: no adapters, not a finite weight for each, or one module has different shapes in two of them.
    """
    if not adapters:
        raise InvalidInput("adapters", "there are none to combine.")
    if len(weights) != len(adapters) or not all(math.isfinite(weight) for weight in weights):
        raise InvalidInput("scales", f"{list(weights)} are not {len(adapters)} finite numbers, one for each adapter.")
    names = sorted({name for adapter in adapters for name in adapter.factors})
    factors = {}
    for name in names:
        parts = [(adapter.factors[name], weight) for adapter, weight in zip(adapters, weights, strict=True) if name in adapter.factors]
        shapes = {(a.shape[1], b.shape[0]) for (a, b), _ in parts}
        if len(shapes) > 1:
            raise InvalidInput("adapters", f"{name} has different shapes in them: {sorted(shapes)}.", hint="Are they of one model?")
        left, right = [single(b) * weight for (_, b), weight in parts], [single(a) for (a, _), _ in parts]
        factors[name] = (torch.cat(right), torch.cat(left, dim=1))
    return Adapter(factors, pointwise=frozenset().union(*(adapter.pointwise for adapter in adapters)))


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
    nothing. The square roots of S go to both factors. Computed in float64; a rank above the true one is not filled up.

    Raises:
        InvalidInput: ``rank`` is below 1.
    """
    if rank < 1:
        raise InvalidInput("rank", f"{rank} is below 1.")
    factors, errors, lost, total = {}, {}, 0.0, 0.0
    for name, (a, b) in adapter.factors.items():
        low_a, low_b, s = _truncated(a.double(), b.double(), rank)
        factors[name] = (low_a.to(a.dtype), low_b.to(b.dtype))
        module_lost, module_total = float(s[rank:].square().sum()), float(s.square().sum())
        errors[name] = (module_lost / module_total) ** 0.5 if module_total else 0.0
        lost, total = lost + module_lost, total + module_total
    return Compressed(Adapter(factors, adapter.metadata, adapter.pointwise), errors, (lost / total) ** 0.5 if total else 0.0)


def _truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of the first ``rank`` singular directions of ``b a``, and all its singular values.

    Only the triangles of the two QRs are needed: with ``R_B R_A^T = U S V^T`` the update's own singular vectors are
    ``B R_A^T V S^-1`` and ``S^-1 U^T R_B A``. What is zero but for rounding is left out, so nothing is divided by it.
    """
    triangle_b, triangle_a = torch.linalg.qr(b, mode="r").R, torch.linalg.qr(a.T, mode="r").R
    u, s, vh = torch.linalg.svd(triangle_b @ triangle_a.T, full_matrices=False)
    floor = max(a.shape[0], 1) * torch.finfo(s.dtype).eps * s[0]
    kept = max(1, min(rank, int((s > floor).sum())))
    root = s[:kept].clamp_min(torch.finfo(s.dtype).tiny).rsqrt() if s[0] > 0 else torch.zeros_like(s[:kept])
    low_b = b @ (triangle_a.T @ vh[:kept].T * root)
    low_a = (root[:, None] * (u[:, :kept].T @ triangle_b)) @ a
    return low_a, low_b, s


def norm(adapter: Adapter) -> float:
    """The Frobenius norm of all updates together, from the factors alone: ``||BA||^2 = tr((B^T B)(A A^T))``."""
    total = 0.0
    for a, b in adapter.factors.values():
        total += float(((b.double().T @ b.double()) * (a.double() @ a.double().T)).sum())
    return max(0.0, total) ** 0.5


def differences(one: Adapter, other: Adapter) -> dict[str, float]:
    """``||delta - delta'|| / ||delta'||`` (Frobenius) by module over the union, from the factors alone; ``inf`` where only one is not zero.

    Exact to about 1e-8, the square root of float64's rounding.
    """
    apart = combine([one, other], [1.0, -1.0])
    distances = {}
    for name, pair in apart.factors.items():
        wanted = norm(Adapter({name: other.factors[name]})) if name in other.factors else 0.0
        distance = norm(Adapter({name: pair}))
        distances[name] = distance / wanted if wanted else 0.0 if distance == 0 else math.inf
    return distances
