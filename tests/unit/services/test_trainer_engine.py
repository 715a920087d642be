"""Differential training against an independent loop through PEFT, and its promises."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig

from services.trainer import fit
from services.trainer.convergence import ProbeLosses
from services.trainer.engine import train_pair, train_pairs
from services.trainer.objectives.objective import TrainedAdapter
from services.trainer.pairs import TrainingPair, TrainSettings
from sfumato.diffusion.families.flux import FluxFamily
from sfumato.errors import Diverged, InvalidInput
from sfumato.lora.adapter import delta
from tests.unit.diffusion import tiny

SHORT = TrainSettings(rank=2, batch=3, steps_before=6, steps_after=5, learning_rate=5e-3)


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return tiny.flux()


def pair(seed: int, prompt: str = "a red house") -> TrainingPair:
    generator = torch.Generator().manual_seed(1000 + seed)
    before = torch.randn(16, 16, generator=generator)
    return TrainingPair(prompt, before, before + 0.5 * torch.randn(16, 16, generator=generator), seed, 32, 32)


def train_alone(pipeline: FluxPipeline, one: TrainingPair, settings: TrainSettings = SHORT) -> TrainedAdapter:
    return train_pair(pipeline, one.prompt, one.before, one.after, settings, one.seed)


def draws(seed: int, stream: int, settings: TrainSettings, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The stratified logit-normal levels and the noise of one pair, drawn again from its documented streams."""
    generator = torch.Generator().manual_seed(seed * 4 + stream * 2 + 1)
    result = []
    for _ in range(steps):
        quantiles = [(k + float(u)) / settings.batch for k, u in enumerate(torch.rand(settings.batch, generator=generator))]
        levels = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(quantiles, dtype=torch.float64)).float().sigmoid()
        result.append((levels, torch.randn(settings.batch, 16, 16, generator=generator)))
    return result


def peft_reference(pipeline: FluxPipeline, wanted: TrainingPair, settings: TrainSettings) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Section 3.3 written out with PEFT adapters on a copy of the transformer."""
    assert isinstance(settings.rank, int)
    model = copy.deepcopy(pipeline.transformer)
    text = FluxFamily(pipeline).encode([wanted.prompt] * settings.batch)
    positions = torch.tensor([[0.0, y, x] for y in range(4) for x in range(4)])
    losses, names = [], []
    fits = [(0, "phi1", wanted.before, settings.steps_before), (1, "phi2", wanted.after, settings.steps_after)]
    for stream, name, latents, steps in fits if settings.objective == "differential" else fits[1:]:
        names.append(name)
        config = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=FluxFamily.lora_targets)
        model.add_adapter(config, name)
        model.set_adapters(names)
        start = torch.Generator().manual_seed(wanted.seed * 4 + stream * 2)
        learn = []
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(f".{name}." in key)
            if f"lora_A.{name}." in key:
                parameter.data = torch.randn(parameter.shape, generator=start) / settings.rank
            if f".{name}." in key:
                learn.append(parameter)
        optimizer = torch.optim.AdamW(learn, lr=settings.learning_rate, weight_decay=0.0)
        for t, noise in draws(wanted.seed, stream, settings, steps):
            noised = (1 - t[:, None, None]) * latents + t[:, None, None] * noise
            velocity = model(hidden_states=noised, timestep=t, img_ids=positions, txt_ids=torch.zeros(12, 3), return_dict=False, **text)[0]
            loss = torch.nn.functional.mse_loss(velocity, noise - latents)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    updates = {}
    for key, module in model.named_modules():
        if "phi2" in getattr(module, "lora_A", {}):
            updates[key] = (module.lora_B["phi2"].weight @ module.lora_A["phi2"].weight).detach()
    return updates, losses


@pytest.mark.parametrize("objective", ["differential", "naive"])
def test_it_equals_the_papers_fits_written_with_peft(pipeline: FluxPipeline, objective: Any) -> None:
    settings = replace(SHORT, objective=objective)
    trained = train_alone(pipeline, pair(3), settings)
    updates, losses = peft_reference(pipeline, pair(3), settings)
    assert trained.losses == pytest.approx(losses, rel=1e-4)
    assert set(updates) == set(trained.adapter.factors)
    for name, update in updates.items():
        difference = (delta(trained.adapter, name) - update).norm() / update.norm()
        assert difference < 0.02, name  # Adam's first steps are signs: rounding of tiny gradients shows


def test_pairs_trained_together_equal_pairs_trained_alone(pipeline: FluxPipeline) -> None:
    pairs = [pair(1), pair(2, "radiant moon over the lake"), pair(3)]
    for result, one in zip(train_pairs(pipeline, pairs, SHORT), pairs, strict=True):
        alone = train_alone(pipeline, one)
        assert isinstance(result, TrainedAdapter)
        assert result.losses == pytest.approx(alone.losses, rel=1e-4)
        for name in alone.adapter.factors:
            assert (delta(result.adapter, name) - delta(alone.adapter, name)).norm() / delta(alone.adapter, name).norm() < 0.02


def test_the_same_call_gives_the_same_bytes(pipeline: FluxPipeline) -> None:
    first, again = train_alone(pipeline, pair(1)), train_alone(pipeline, pair(1))
    assert first.losses == again.losses
    for name, (a, b) in first.adapter.factors.items():
        assert torch.equal(a, again.adapter.factors[name][0])
        assert torch.equal(b, again.adapter.factors[name][1])


def test_the_pipeline_is_untouched_and_serves_many_pairs(pipeline: FluxPipeline) -> None:
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    flags = [parameter.requires_grad for parameter in pipeline.transformer.parameters()]
    for seed in range(2):
        trained = train_alone(pipeline, pair(seed), SHORT)
        assert trained.adapter.factors["single_transformer_blocks.0.proj_mlp"][0].dtype == torch.float32
    after = pipeline.transformer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [parameter.requires_grad for parameter in pipeline.transformer.parameters()] == flags
    assert not any(module._forward_hooks for module in pipeline.transformer.modules())


def test_training_learns_the_picture_and_the_second_fit_starts_from_it(pipeline: FluxPipeline) -> None:
    settings = TrainSettings(rank=4, batch=4, steps_before=150, steps_after=100, learning_rate=5e-3)
    same = pair(5)
    same = replace(same, after=same.before + 0.05 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))
    differential = train_alone(pipeline, same, settings)
    naive = train_alone(pipeline, same, replace(settings, objective="naive"))
    assert len(differential.losses) == 250
    assert len(naive.losses) == 100
    first, last = sum(differential.losses[:10]), sum(differential.losses[140:150])
    assert last < 0.8 * first
    assert sum(differential.losses[150:160]) < 0.9 * sum(naive.losses[:10])  # phi_1 already knows the picture


def test_embedded_guidance_is_passed() -> None:
    pipeline = tiny.flux(guidance_embeds=True)
    low = train_alone(pipeline, pair(1), replace(SHORT, guidance=1.0))
    high = train_alone(pipeline, pair(1), replace(SHORT, guidance=4.0))
    assert low.losses != high.losses


def test_a_pair_that_diverges_says_so_and_takes_nobody_with_it(pipeline: FluxPipeline) -> None:
    wild = replace(pair(1), before=torch.full((16, 16), 1e30))
    with pytest.raises(Diverged):
        train_alone(pipeline, wild)
    good, bad = train_pairs(pipeline, [pair(2), wild], SHORT)
    assert isinstance(bad, Diverged)
    assert isinstance(good, TrainedAdapter)
    assert good.losses == pytest.approx(train_alone(pipeline, pair(2)).losses, rel=1e-4)


@pytest.mark.parametrize(
    ("field", "change", "settings"),
    [
        ("pairs[0].before", {"before": torch.zeros(15, 16)}, {}),
        ("pairs[0].after", {"after": torch.full((16, 16), float("inf"))}, {}),
        ("learning_rate", {}, {"learning_rate": 0.0}),
        ("objective", {}, {"objective": "other"}),
        ("settings", {}, {"rank": 0}),
    ],
)
def test_unusable_work_is_refused_by_field(pipeline: FluxPipeline, field: str, change: dict, settings: dict) -> None:
    with pytest.raises(InvalidInput) as caught:
        train_pairs(pipeline, [replace(pair(1), **change)], replace(SHORT, **settings))
    assert caught.value.field == field


def test_no_pairs_and_mixed_sizes_are_refused(pipeline: FluxPipeline) -> None:
    with pytest.raises(InvalidInput):
        train_pairs(pipeline, [], SHORT)
    with pytest.raises(InvalidInput):
        train_pairs(pipeline, [pair(1), replace(pair(2), width=64, height=16)], SHORT)


def test_pairs_whose_loss_explodes_are_dropped_and_the_others_are_as_if_alone(
    pipeline: FluxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rule so strict that a step's bad draw breaks it, pairs go at different steps."""
    settings = replace(SHORT, steps_before=8, steps_after=8)
    pairs = [pair(seed) for seed in range(6)]
    expected = train_pairs(pipeline, pairs, settings)
    monkeypatch.setattr(fit, "EXPLODED", 1.165)
    monkeypatch.setattr(fit, "PATIENCE", 1)
    results = train_pairs(pipeline, pairs, settings)
    assert {type(result) for result in results} == {Diverged, TrainedAdapter}
    for result, free in zip(results, expected, strict=True):
        assert isinstance(free, TrainedAdapter)
        if isinstance(result, Diverged):
            assert "its loss stayed above 1.165 times its start for 1 steps" in str(result)
        else:
            assert result.losses == pytest.approx(free.losses, rel=1e-4)
            for name in free.adapter.factors:
                assert (delta(result.adapter, name) - delta(free.adapter, name)).norm() / delta(free.adapter, name).norm() < 0.02


@pytest.mark.parametrize(
    ("start", "late", "end", "converged"),
    [
        (1.0, 0.42, 0.4, True),
        (1.0, 0.62, 0.6, False),  # too much is left
        (1.0, 0.55, 0.4, False),  # it still falls
        (1.0, 0.39, 0.4, True),
        (1.0, 1.5, 2.0, False),
    ],
)
def test_a_fit_has_converged_when_it_learnt_the_picture_and_has_no_more_to_learn(
    start: float, late: float, end: float, converged: bool
) -> None:
    assert ProbeLosses(start, late, end).converged() is converged


def test_the_smallest_rank_that_converges_is_taken_and_the_pair_is_as_if_trained_at_it_alone(pipeline: FluxPipeline) -> None:
    settings = replace(SHORT, rank="auto", batch=4, steps_before=60, steps_after=4, learning_rate=1e-2)
    scales = (1.0, 3.0, 0.2)
    pairs = [replace(pair(seed), before=scale * pair(seed).before) for seed, scale in enumerate(scales)]
    results = train_pairs(pipeline, pairs, settings)
    ranks = set()
    for result, one in zip(results, pairs, strict=True):
        assert isinstance(result, TrainedAdapter)
        ranks.add(result.rank)
        tried = (4, 8, 16)[: (4, 8, 16).index(result.rank) + 1]
        assert [probe.converged() for probe in result.probes[:-2]] == [False] * (len(tried) - 1)
        assert result.probes[-2].converged() or result.rank == 16
        fixed = train_alone(pipeline, one, replace(settings, rank=result.rank))
        assert result.losses == pytest.approx(fixed.losses, rel=1e-2)
        assert set(result.adapter.ranks.values()) == {result.rank}
    assert len(ranks) > 1


def test_a_memory_budget_cuts_the_pairs_into_packs_with_the_same_result(pipeline: FluxPipeline) -> None:
    pairs = [pair(seed) for seed in range(3)]
    with pytest.raises(InvalidInput, match="one pair of rank 2 needs") as caught:
        train_pairs(pipeline, pairs, replace(SHORT, memory=1))
    needed = int(str(caught.value).split(" needs ")[1].split()[0])
    rows: list[int] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _, __, inputs: rows.append(len(inputs["hidden_states"])), with_kwargs=True)
    packed = train_pairs(pipeline, pairs, replace(SHORT, memory=2 * needed + 1))
    hook.remove()
    assert max(rows) == 2 * SHORT.batch
    assert min(rows[-SHORT.steps_after :]) <= SHORT.batch
    for result, free in zip(packed, train_pairs(pipeline, pairs, SHORT), strict=True):
        assert isinstance(result, TrainedAdapter) and isinstance(free, TrainedAdapter)
        assert result.losses == pytest.approx(free.losses, rel=1e-4)
    with pytest.raises(InvalidInput, match="memory"):
        train_pairs(pipeline, pairs, replace(SHORT, batch=2 * SHORT.batch, memory=needed))
