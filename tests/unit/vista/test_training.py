"""The training loop and the generator's recipes: the loss falls, a killed training resumes to the same bytes, a budget is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import load_file

from sfumato.errors import Diverged, InvalidInput, MissingWeights
from sfumato.vista.generator import build_autoencoder
from sfumato.vista.training import parts
from sfumato.vista.training.autoencoder import AutoencoderTask
from sfumato.vista.training.generator import GuidanceTask, TransformerTask
from sfumato.vista.training.loop import fit, parse_budget, rate
from tests.unit.vista.killing import Killed, killed


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = build_autoencoder().eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    return vae


def transformer(vae: AutoencoderKL, folder: Path) -> TransformerTask:
    return TransformerTask(vae, folder, scenes=288, batch=8, micro=8)


def test_the_autoencoder_learns(tmp_path: Path) -> None:
    task = AutoencoderTask(batch=8)
    before = task.validate(task.model)["psnr"]
    after = fit(task, tmp_path, steps=12)["psnr"]
    assert after > before + 1
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config["shift_factor"] is not None


def test_a_killed_training_resumes_to_the_same_bytes(tmp_path: Path, vae: AutoencoderKL) -> None:
    fit(transformer(vae, _folder(tmp_path / "whole")), tmp_path / "whole", steps=6)
    with pytest.raises(Killed):
        fit(killed(transformer(vae, _folder(tmp_path / "killed")), at=4), tmp_path / "killed", steps=6)
    fit(transformer(vae, tmp_path / "killed"), tmp_path / "killed", resume=True)
    whole, resumed = (load_file(tmp_path / name / "transformer.checkpoint.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_generator_learns(tmp_path: Path, vae: AutoencoderKL) -> None:
    task = transformer(vae, tmp_path)
    before = task.validate(task.model)["validation"]
    after = fit(task, tmp_path, steps=20)["validation"]
    assert after < before - 0.1
    pipeline = FluxPipeline.from_pretrained(tmp_path / "transformer")
    teacher = torch.nn.ModuleDict({"transformer": pipeline.transformer, "clip": pipeline.text_encoder, "t5": pipeline.text_encoder_2})
    student = GuidanceTask(vae, tmp_path, teacher, guidance=3.0, scenes=288, batch=8, micro=8)
    fit(student, tmp_path, steps=2)
    assert FluxPipeline.from_pretrained(tmp_path / "guided").transformer is not None


def test_distillation_aims_at_classifier_free_guidance(tmp_path: Path, vae: AutoencoderKL) -> None:
    task = transformer(vae, tmp_path)
    fit(task, tmp_path, steps=3)
    g = torch.Generator().manual_seed(0)
    latents, ids = task.latents(torch.arange(4)), task.pool.ids[:4, 0].long()
    t, noise = torch.rand(4, generator=g), torch.randn(4, 64, 32, generator=g)
    noisy = (1 - t)[:, None, None] * latents + t[:, None, None] * noise
    with torch.no_grad():
        conditional = task.velocity(task.model, noisy, t, *task.encode(task.model, ids))
        empty = task.velocity(task.model, noisy, t, *task.encode(task.model, task.empty.expand(4, -1)))
        losses = [
            GuidanceTask(vae, tmp_path, task.model, guidance=w, scenes=288, batch=8, micro=8).loss(task.model, latents, ids, t, noise)
            for w in (1.0, 3.0)
        ]
    assert losses[0] < 1e-10
    torch.testing.assert_close(losses[1], (2 * (conditional - empty)).square().mean(), rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_stops_with_its_reason(tmp_path: Path) -> None:
    task = AutoencoderTask(batch=4)
    task.backward = lambda step: float("nan")
    with pytest.raises(Diverged, match="step 0"):
        fit(task, tmp_path, steps=3)


def test_the_rate_rises_holds_and_falls() -> None:
    assert rate(0.0) == pytest.approx(0.02)
    assert rate(0.3) == 1.0
    assert rate(1.0) == pytest.approx(0.02)


@pytest.mark.parametrize(("text", "seconds"), [("3h", 10800), ("20m", 1200), ("1.5s", 1.5)])
def test_budgets_are_read(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "h", "-1m", "nan s", "infh"])
def test_a_wrong_budget_is_named(text: str) -> None:
    with pytest.raises(InvalidInput, match="budget"):
        parse_budget(text)


def test_unknown_parts_and_missing_predecessors_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="part: nose"):
        parts.train(["nose"], tmp_path, device="cpu", budget=1, steps=None, resume=False)
    with pytest.raises(MissingWeights, match="autoencoder"):
        parts.train(["transformer"], tmp_path, device="cpu", budget=1, steps=None, resume=False)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
