"""The losses of every family by its own scheduler, their gradients, and packed pairs of any family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from services.trainer.engine import train_pairs
from services.trainer.fit import FitInput, input_losses
from services.trainer.loss import FitContext
from services.trainer.objectives.objective import TrainedAdapter
from services.trainer.pairs import TrainingPair, TrainSettings
from sfumato.diffusion.families import family_of
from sfumato.lora.adapter import delta
from sfumato.lora.packed import PackedLora
from tests.unit.diffusion import tiny

FAMILIES: dict[str, Callable[[], Any]] = {
    "flux": tiny.flux,
    "sd epsilon": tiny.sd,
    "sd v": lambda: tiny.sd("v_prediction"),
    "sdxl": tiny.sdxl,
    "sd3": tiny.sd3,
}
SETTINGS = TrainSettings(rank=2, batch=2, steps_before=4, steps_after=4, learning_rate=5e-3)


@pytest.fixture(scope="module", params=list(FAMILIES))
def pipeline(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


def pair(pipeline: Any, seed: int) -> TrainingPair:
    shape = family_of(pipeline).mask((0, 0, 32, 32), 32, 32).shape
    before, after = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)).unbind()
    return TrainingPair("a red house", before, before + 0.3 * after, seed, 32, 32)


def fitting(pipeline: Any, prompts: list[str], dtype: torch.dtype = torch.float32) -> tuple[FitContext, list[FitInput]]:
    family = family_of(pipeline)
    texts = {name: text.to(dtype) for name, text in family.encode(prompts).items()}
    inputs = [
        FitInput((pair(pipeline, k).before.to(dtype),), {name: text[k : k + 1] for name, text in texts.items()}, k)
        for k in range(len(prompts))
    ]
    return FitContext(family, 32, 32, 1.0, 2, 1e-3), inputs


def test_the_loss_goes_down(pipeline: Any) -> None:
    settings = replace(SETTINGS, rank=4, batch=4, objective="naive", steps_after=40, learning_rate=1e-2)
    result = train_pairs(pipeline, [pair(pipeline, 1)], settings)[0]
    assert isinstance(result, TrainedAdapter)
    assert result.probes[0].end < 0.95 * result.probes[0].start


def test_pairs_trained_together_equal_pairs_trained_alone(pipeline: Any) -> None:
    pairs = [pair(pipeline, seed) for seed in (1, 2)]
    for result, one in zip(train_pairs(pipeline, pairs, SETTINGS), pairs, strict=True):
        alone = train_pairs(pipeline, [one], SETTINGS)[0]
        assert isinstance(result, TrainedAdapter) and isinstance(alone, TrainedAdapter)
        assert result.losses == pytest.approx(alone.losses, rel=1e-3)
        assert set(result.adapter.factors) == set(alone.adapter.factors)
        for name in alone.adapter.factors:
            expected = delta(alone.adapter, name)  # zero where SD3's last block does not use the text
            assert (delta(result.adapter, name) - expected).norm() <= 0.05 * expected.norm(), name


@pytest.mark.parametrize("name", list(FAMILIES))
def test_gradients_agree_with_finite_differences_in_double_precision(name: str) -> None:
    pipeline = FAMILIES[name]()
    family_of(pipeline).denoiser.double()
    shared, inputs = fitting(pipeline, ["a red house", "the moon"], torch.float64)
    phi = PackedLora.fresh(shared.family.denoiser, shared.family.lora_targets, 2, [1, 2])
    generator = torch.Generator().manual_seed(0)
    for factor in phi.b.values():
        factor.data.normal_(generator=generator).mul_(0.1)
    uniform, noise = torch.tensor([[0.3, 0.8]] * 2), torch.randn(2, 2, *inputs[0].pictures[0].shape, generator=generator).double()

    def loss() -> Tensor:
        return input_losses(shared, inputs, uniform, noise, phi).sum()

    gradients = torch.autograd.grad(loss(), phi.parameters())
    directions = [torch.randn(factor.shape, generator=generator, dtype=torch.float64) for factor in phi.parameters()]
    slope, ends = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True)), []
    for step in (1e-4, -2e-4):
        for factor, direction in zip(phi.parameters(), directions, strict=True):
            factor.data += step * direction
        ends.append(float(loss().detach()))
    whole = name.startswith("sd ")  # the others compute some embeddings and norms in single precision whatever they are given
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(slope, rel=1e-5 if whole else 1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_the_schedulers_own_written_out(kind: str) -> None:
    pipeline = tiny.sd(kind)
    shared, inputs = fitting(pipeline, ["a red house"])
    noise = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    phi = PackedLora.fresh(shared.family.denoiser, shared.family.lora_targets, 1, [0])  # untrained: it changes nothing
    loss = input_losses(shared, inputs, torch.tensor([[0.25, 0.75]]), noise, phi)
    scheduler, steps = pipeline.scheduler, torch.tensor([250, 750])
    clean = inputs[0].pictures[0].expand(2, -1, -1, -1)
    text = pipeline.encode_prompt(["a red house"] * 2, "cpu", 1, False)[0]
    answer = pipeline.unet(scheduler.add_noise(clean, noise[0], steps), steps, text, return_dict=False)[0]
    target = noise[0] if kind == "epsilon" else scheduler.get_velocity(clean, noise[0], steps)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(answer, target)[None], rtol=1e-4, atol=0)
