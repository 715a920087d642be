"""Adapters as bytes for the artifact store, in the very layout of their files."""

from __future__ import annotations

from typing import TypeAlias

from sfumato.lora.adapter import Adapter
from sfumato.lora.files import dumps, loads

Fused: TypeAlias = tuple[tuple[str, float], ...]
"""The name of what is fused into a base (`Fuser.use`): the SHA-256 of each adapter's file and its weight, in order."""


def encode_adapter(adapter: Adapter) -> bytes:
    """The bytes of the adapter's file, without metadata: equal updates give equal bytes, and manifests keep the origin."""
    return dumps(Adapter(adapter.factors, pointwise=adapter.pointwise))


def decode_adapter(data: bytes) -> Adapter:
    """The adapter in the bytes of a file of any layout that is read.

    Raises:
        BrokenWeights: they are not an adapter's.
    """
    return loads(data)
