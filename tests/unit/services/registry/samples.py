"""A base model that is nothing but shapes, and small adapters of it."""

from __future__ import annotations

import hashlib

import numpy as np
from safetensors.numpy import save

from services.registry.engine import Registry
from sfumato.registry.records import Base, Version, WeightedAdapter

TO_Q, TO_K = "transformer.blocks.0.attn.to_q", "transformer.blocks.0.attn.to_k"
BASE = Base(hashlib.sha256(b"base").hexdigest(), "tiny", {TO_Q: [6, 4], TO_K: [6, 4]})


def tensors(seed: int = 0, rank: int = 2) -> dict[str, np.ndarray]:
    """Random factors on both linears."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in (TO_Q, TO_K):
        found[f"{name}.lora_A.weight"] = rng.standard_normal((rank, 4)).astype(np.float32)
        found[f"{name}.lora_B.weight"] = rng.standard_normal((6, rank)).astype(np.float32)
    return found


def adapter(seed: int = 0, rank: int = 2) -> tuple[str, bytes]:
    """SHA-256 and bytes of an adapter's file."""
    data = save(tensors(seed, rank))
    return hashlib.sha256(data).hexdigest(), data


def register(registry: Registry, *seeds: int, weight: float = 1.0, **options: object) -> Version:
    """A version with one adapter a seed."""
    files = dict(adapter(seed) for seed in seeds)
    return registry.register(BASE, [WeightedAdapter(digest, weight) for digest in files], files=files, **options)  # pyright: ignore[reportArgumentType]
