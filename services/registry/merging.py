"""Adds several adapters into one, by the library's exact algebra. The only part of the registry that needs PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfumato.lora import adapter as algebra
from sfumato.runtime.models.adapters import decode_adapter, encode_adapter
from sfumato.runtime.models.versions import libraries


@dataclass(frozen=True, slots=True)
class Merged:
    """The new adapter's file; ``error`` is the compression error ``||delta - delta'|| / ||delta||`` (Frobenius norm)."""

    data: bytes
    sha256: str
    error: float
    libraries: Mapping[str, str]


def merged(adapters: Sequence[tuple[bytes, float]], rank: int | None) -> Merged:
    """``sum_i weight_i * update_i`` as one file, exact, or its best approximation of rank ``rank``.

    Raises:
        InvalidInput: the adapters belong to different models, or the rank is below 1.
        BrokenWeights: an adapter cannot be read.
    """
    total = algebra.combine([decode_adapter(data) for data, _ in adapters], [weight for _, weight in adapters])
    error = 0.0
    if rank is not None:
        compressed = algebra.compress(total, rank)
        total, error = compressed.adapter, compressed.error
    data = encode_adapter(total)
    return Merged(data, hashlib.sha256(data).hexdigest(), error, libraries())
