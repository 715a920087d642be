"""The scorers' training: what pictures and captions they are shown, what they are asked for, and that they learn it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from sfumato.errors import InvalidInput, MissingWeights
from sfumato.scoring.networks import ConditionedAttention, unit
from sfumato.types import Image
from sfumato.vista.evaluation.scorers import aesthetic_spearman, clip_retrieval, preference_accuracy, spearman
from sfumato.vista.training import clip, pairs, preferences, scorers
from sfumato.vista.training.loop import Step, fit
from tests.unit.vista.killing import Killed, killed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorers")
    fit(clip.ClipTask(groups=8, batch=4), folder, steps=3)
    return folder


def test_a_killed_clip_training_resumes_to_the_same_bytes(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(Killed):
        fit(killed(clip.ClipTask(groups=8, batch=4), at=2), tmp_path, steps=3)
    fit(clip.ClipTask(groups=8, batch=4), tmp_path, resume=True)
    assert (tmp_path / "clip/model.safetensors").read_bytes() == (trained / "clip/model.safetensors").read_bytes()


def test_clip_learns_captions_and_finish(tmp_path: Path) -> None:
    task = clip.ClipTask(groups=8, batch=8)
    step = Step(0, 0.0, torch.Generator().manual_seed(0), random.Random(0))
    before = task.backward(step)
    fit(task, tmp_path, steps=25)
    assert task.backward(step) < 0.75 * before
    assert CLIPModel.from_pretrained(tmp_path / "clip").config.projection_dim == 128


@pytest.mark.parametrize(("part", "batch"), [("aesthetic", 512), ("pickscore", 16), ("mps", 16)])
def test_what_stands_on_clip_learns_and_resumes_to_the_same_bytes(tmp_path: Path, trained: Path, part: str, batch: int) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / scorers.STARTS[part]).symlink_to(trained / "clip")
    sizes: dict[str, Any] = {"groups": 8, "batch": batch}
    task = scorers.build(part, tmp_path / "whole", **sizes)
    step = Step(0, 0.0, torch.Generator().manual_seed(0), random.Random(0))
    before = task.backward(step)
    fit(scorers.build(part, tmp_path / "whole", **sizes), tmp_path / "whole", steps=4)
    with pytest.raises(Killed):
        fit(killed(scorers.build(part, tmp_path / "killed", **sizes), at=2), tmp_path / "killed", steps=4)
    fit(scorers.build(part, tmp_path / "killed", **sizes), tmp_path / "killed", resume=True)
    files = sorted(p.name for p in (tmp_path / "whole" / part).iterdir())
    assert all((tmp_path / "whole" / part / f).read_bytes() == (tmp_path / "killed" / part / f).read_bytes() for f in files)
    fit(task, tmp_path / "more", steps=12)
    assert task.backward(step) < before


def test_parts_are_named_and_need_clip(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a scorer"):
        scorers.build("beauty", tmp_path)
    with pytest.raises(MissingWeights, match="--part clip"):
        scorers.build("aesthetic", tmp_path)
    with pytest.raises(MissingWeights, match="--part pickscore"):
        scorers.build("mps", tmp_path)


def test_groups_differ_as_they_say() -> None:
    pool = pairs.pair_pool("test", 40)
    for scenes, finish in zip(pool.scenes, pool.finish, strict=True):
        base, refinished, altered, elsewhere = scenes
        assert pairs.contents(base) == pairs.contents(refinished) == pairs.contents(elsewhere)
        assert [e.box for e in base.elements] == [e.box for e in refinished.elements]
        assert pairs.finish_mask(base) != pairs.finish_mask(refinished)
        assert pairs.lacks(altered, base) or pairs.lacks(base, altered)
        assert torch.allclose(finish[:, 2], 0.75 * finish[:, 0] + 0.25 * finish[:, 1])
    assert torch.equal(pool.pictures, pairs.pair_pool("test", 40).pictures)


def test_a_plain_caption_is_neutral_to_the_finish_and_a_beautiful_one_is_not() -> None:
    task = clip.ClipTask(groups=8, batch=4)
    batch = task.draw(task.pool, random.Random(0), None)
    scenes = [scene for group in task.pool.scenes for scene in group]
    rng = random.Random(0)
    plainly = []
    for scene in scenes:
        plainly.append(rng.random() < clip.PLAINLY)
        pairs.spoken(scene, rng, plainly[-1])
    for row, plain in enumerate(plainly):
        for column, other in enumerate(scenes):
            said = 0 if plain else pairs.finish_mask(scenes[row])
            true = pairs.contents(other) == pairs.contents(scenes[row]) and said & pairs.finish_mask(other) == said
            assert bool(batch.neutral[row, column]) == (true and row != column)


def test_the_contrastive_loss_is_clips_where_nothing_is_neutral() -> None:
    logits = torch.randn(6, 6, dtype=torch.float64)
    empty = torch.zeros(0)
    batch = clip.Batch(empty, empty, empty, torch.zeros(6, 6, dtype=torch.bool), torch.ones(6, dtype=torch.bool), empty, empty, empty)
    p, q = logits.softmax(1).diag().log(), logits.softmax(0).diag().log()
    assert clip.contrastive(logits, batch).item() == pytest.approx(-(p.mean() + q.mean()).item() / 2)


def test_pairs_prefer_finish_then_content() -> None:
    pool = pairs.pair_pool("test", 40)
    for condition in clip.CONDITIONS:
        drawn = preferences.draw_pairs(pool, 32, random.Random(1), condition)
        assert drawn.pictures.shape == (2, 32, 3, 64, 64) and len(drawn.prompts) == 32
        assert 0.2 < drawn.preferred.float().mean() < 0.8
    each = zip(pool.pictures.flatten(0, 1), pool.finish[..., 2].flatten(), strict=True)
    flat = {bytes(picture.numpy().tobytes()): float(finish) for picture, finish in each}
    drawn = preferences.draw_pairs(pool, 64, random.Random(2), "aesthetics")
    for index, preferred in enumerate(drawn.preferred.tolist()):
        finish = [flat[bytes(drawn.pictures[k, index].numpy().tobytes())] for k in (0, 1)]
        assert finish[preferred] > finish[1 - preferred]


def test_words_a_condition_is_not_about_are_damped() -> None:
    torch.manual_seed(0)
    attention = ConditionedAttention(16)
    image, text, condition = torch.randn(1, 5, 16), torch.randn(1, 3, 16), torch.randn(1, 2, 16)
    ones = torch.ones(1, 3, dtype=torch.long), torch.ones(1, 2, dtype=torch.long)
    with torch.no_grad():
        attention.out.weight.normal_()
        attention.narrow.weight.normal_()
        attention.slope.fill_(200.0)
        attention.threshold.fill_(0.99)
        condition[0, 0] = text[0, 1]
        gated = attention(image, text, ones[0], condition, ones[1])
        alone = attention(image, text[:, 1:2], ones[0][:, :1], condition, ones[1])
        padded = attention(image, torch.cat([text, torch.randn(1, 2, 16)], 1), torch.tensor([[1, 1, 1, 0, 0]]), condition, ones[1])
    assert torch.allclose(gated, alone, atol=1e-5)
    assert torch.allclose(gated, padded, atol=1e-5)


def test_rank_correlations_agree_with_counting() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    expected = np.corrcoef(ranks(a), ranks(b))[0, 1]
    assert spearman(a, b) == pytest.approx(expected)
    assert scorers.rank_correlation(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected)


def test_figures_tell_a_perfect_scorer_from_a_blind_one() -> None:
    def brightness(images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        return [float(np.mean(image)) for image in images]

    assert clip_retrieval(brightness, rounds=1) < 0.1
    assert abs(aesthetic_spearman(brightness, count=64)) < 0.5
    assert preference_accuracy(brightness, count=64) < 0.8
    assert math.isclose(float(unit(torch.tensor([[3.0, 4.0]])).norm()), 1.0, rel_tol=1e-6)
