"""Adapters as bytes for the artifact store, in the very layout of their files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TypeAlias

from sfumato.lora.adapter import Adapter
from sfumato.lora.files import load, save

Fused: TypeAlias = tuple[tuple[str, float], ...]
"""The name of what is fused into a base (`Fuser.use`): the SHA-256 of each adapter's file and its weight, in order."""


def encode_adapter(adapter: Adapter) -> bytes:
    """The bytes of the adapter's file, without metadata: equal updates give equal bytes, and manifests keep the origin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save(Adapter(adapter.factors), path)
        return path.read_bytes()


def decode_adapter(data: bytes) -> Adapter:
    """The adapter in the bytes of such a file.

    Raises:
        BrokenWeights: they are not an adapter's.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        path.write_bytes(data)
        return load(path)
