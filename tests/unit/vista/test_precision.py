"""The precision of trainings: chosen by the processor's instructions, and a step of every kind of training in both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.vista.training import clip
from sfumato.vista.training.autoencoder import AutoencoderTask
from sfumato.vista.training.loop import Step, TrainingTask
from sfumato.vista.training.precision import autocast, multiplies_bfloat16
from sfumato.vista.training.understanding import UnderstandingTask

AVX2 = {"architecture": "x86_64", "avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False}
SKYLAKE = AVX2 | {"avx512_f": True, "avx512_bw": True, "avx512_vnni": True}
COOPER_LAKE = SKYLAKE | {"avx512_bf16": True}
SAPPHIRE_RAPIDS = COOPER_LAKE | {"amx_bf16": True}
GRAVITON2 = {"architecture": "aarch64", "neon": True, "bf16": False, "sve": False}
GRAVITON3 = GRAVITON2 | {"bf16": True, "sve": True, "sve_bf16": True}


@pytest.mark.parametrize(
    ("capabilities", "limit", "expected"),
    [
        (AVX2, "", False),
        (SKYLAKE, "", False),
        (COOPER_LAKE, "", True),
        (SAPPHIRE_RAPIDS, "", True),
        (GRAVITON2, "", False),
        (GRAVITON3, "", True),
        (SAPPHIRE_RAPIDS, "AVX2", False),
        (SAPPHIRE_RAPIDS, "avx512_core", False),
        (SAPPHIRE_RAPIDS, "AVX512_CORE_BF16", True),
        (SAPPHIRE_RAPIDS, "DEFAULT", True),
        (AVX2, "AVX512_CORE_BF16", False),
        ({}, "", False),
    ],
)
def test_bfloat16_wants_its_instructions_and_that_onednn_may_use_them(capabilities: dict[str, bool], limit: str, expected: bool) -> None:
    assert multiplies_bfloat16(capabilities, limit) is expected


def test_the_environment_holds_this_processor_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: SAPPHIRE_RAPIDS)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert _product().dtype is torch.bfloat16
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert _product().dtype is torch.float32


def test_a_gpu_computes_in_bfloat16_whatever_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: AVX2)
    assert not autocast("cpu")._enabled
    if torch.cuda.is_available():
        assert autocast("cuda")._enabled and autocast("cuda").fast_dtype is torch.bfloat16


@pytest.mark.parametrize("kind", ["clip", "vae", "understanding"])
def test_a_step_learns_the_same_in_both_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    losses, gradients = [], []
    for capabilities, dtype in ((AVX2, torch.float32), (SAPPHIRE_RAPIDS, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known)
        task = _task(kind, tmp_path)
        seen = _outputs(task.model)
        losses.append(task.backward(Step(0, 0.5, torch.Generator().manual_seed(3), random.Random(3))))
        assert dtype in seen and seen <= {dtype, torch.float32}
        gradients.append(torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None]))
        for optimizer in task.optimizers():
            optimizer.step()
        assert all(bool(p.isfinite().all()) for p in task.model.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.98


def _task(kind: str, folder: Path) -> TrainingTask:
    if kind == "clip":
        return clip.ClipTask(groups=2, batch=1)
    return AutoencoderTask(batch=1) if kind == "vae" else UnderstandingTask(folder, pool=24, batch=1)


def _product() -> torch.Tensor:
    with autocast("cpu"):
        return torch.ones(2, 2) @ torch.ones(2, 2)


def _outputs(model: nn.Module) -> set[torch.dtype]:
    """The dtypes that linear layers and convolutions answer in, filled as the model computes."""
    seen: set[torch.dtype] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, answer: seen.add(answer.dtype))
    return seen
