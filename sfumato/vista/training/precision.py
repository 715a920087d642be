"""The precision of a training's matrix products: bfloat16 where the processor has instructions for it, else float32."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Capabilities, as torch names them, that multiply bfloat16 matrices: two of x86, two of ARM."""
BELOW = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"})
"""Values of ONEDNN_MAX_CPU_ISA that keep oneDNN from using those of x86."""


def autocast(device: str) -> torch.autocast:
    """The context of a forward pass on ``device``: bfloat16 on a GPU, and on a CPU where `multiplies_bfloat16`.

    Without such instructions oneDNN converts every element: with AVX2 only, a product takes tens of times as long as in float32.
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=torch.device(device).type != "cpu" or multiplies_bfloat16())


def multiplies_bfloat16(capabilities: Mapping[str, Any] | None = None, limit: str | None = None) -> bool:
    """Whether matrix products in bfloat16 run on instructions of their own.

    Args:
        capabilities: of the processor, as `torch.cpu.get_capabilities` reports them (the default).
        limit: the instruction set to which oneDNN is held; by default the environment's ``ONEDNN_MAX_CPU_ISA``.
    """
    known = torch.cpu.get_capabilities() if capabilities is None else capabilities
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", "") if limit is None else limit
    return held.upper() not in BELOW and any(known.get(name, False) for name in INSTRUCTIONS)
