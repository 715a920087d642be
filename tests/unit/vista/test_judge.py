"""The independent detector and judge: their training, their files, and what the shipped ones see."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sfumato.errors import BrokenWeights, MissingWeights
from sfumato.runtime.images import resize
from sfumato.vista.evaluation.convnet import attend
from sfumato.vista.evaluation.detector import Detector
from sfumato.vista.evaluation.judge import Judge, finish_shares
from sfumato.vista.evaluation.scorers import detector_figures, judge_figures
from sfumato.vista.training.augment import degrade
from sfumato.vista.training.judge import DetectorTask, JudgeTask, box_iou, coverage, detector_loss
from sfumato.vista.training.loop import Step, fit
from sfumato.vista.training.scenes import LABELS, scene_pool
from sfumato.vista.world import KINDS, pixel_box, render, sample_scene, with_finish
from tests.unit.vista.killing import Killed, killed

SMALL = (8, 16, 16)


@pytest.mark.parametrize("kind", [DetectorTask, JudgeTask])
def test_a_killed_training_resumes_to_the_same_bytes(tmp_path: Path, kind: type[DetectorTask] | type[JudgeTask]) -> None:
    def task() -> DetectorTask | JudgeTask:
        return kind(scenes=32, batch=4, widths=SMALL)

    fit(task(), tmp_path / "whole", steps=4)
    with pytest.raises(Killed):
        fit(killed(task(), at=2), tmp_path / "killed", steps=4)
    fit(task(), tmp_path / "killed", resume=True)
    name = f"{kind.name}/model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_the_judge_learns_and_is_saved_whole(tmp_path: Path) -> None:
    task = JudgeTask(scenes=64, batch=8, widths=SMALL)
    step = Step(0, 0.0, torch.Generator().manual_seed(0), random.Random(0))
    before = task.backward(step)
    fit(task, tmp_path, steps=25)
    assert task.backward(step) < 0.8 * before
    judge = Judge.from_folder(tmp_path / "judge")
    assert judge.kinds == LABELS
    stored = load_file(tmp_path / "judge" / "model.safetensors")
    assert all(t.dtype == torch.float16 for t in stored.values())


def test_the_detector_is_saved_with_its_kinds_and_thresholds(tmp_path: Path) -> None:
    fit(DetectorTask(scenes=32, batch=8, widths=SMALL), tmp_path, steps=2)
    detector = Detector.from_folder(tmp_path / "detector")
    assert detector.kinds == KINDS
    assert all(0 < threshold < 1 for threshold in detector.thresholds)
    (tmp_path / "detector" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(BrokenWeights):
        Detector.from_folder(tmp_path / "detector")
    with pytest.raises(MissingWeights):
        Detector.load(tmp_path)


def test_a_perfect_detection_costs_almost_nothing() -> None:
    from sfumato.vista.evaluation.detector import Found

    truth = scene_pool("loss", 8)
    sure = (coverage(truth.labels)[:, 1:] * 4).clamp(1e-4, 1 - 1e-4).logit()
    perfect = Found(sure, truth.present[:, 1:].float() * 40 - 20, truth.boxes[:, 1:].clone())
    shifted = perfect._replace(boxes=perfect.boxes + 0.1)
    soft = torch.nn.functional.binary_cross_entropy_with_logits(sure, sure.sigmoid())
    assert detector_loss(perfect, truth) == pytest.approx(10 * soft.item(), abs=0.01)
    assert detector_loss(shifted, truth) > detector_loss(perfect, truth) + 1


def test_cells_cover_what_the_pixels_show() -> None:
    labels = scene_pool("cover", 4).labels
    cells = coverage(labels)
    assert torch.allclose(cells.sum(1), torch.ones(4, 16, 16))
    assert cells[2, :, 5, 7].tolist() == [float((labels[2, 20:24, 28:32] == k).float().mean()) for k in range(len(LABELS))]


def test_overlap_equals_counting_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        boxes = [sorted(rng.choice(12, 2, replace=False)) + sorted(rng.choice(12, 2, replace=False)) for _ in range(2)]
        a, b = (np.zeros((12, 12), bool) for _ in range(2))
        for grid, (x1, x2, y1, y2) in zip((a, b), boxes, strict=True):
            grid[y1:y2, x1:x2] = True
        ours = box_iou(*(torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32) for x1, x2, y1, y2 in boxes))
        assert ours.item() == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-5)


def test_attention_is_a_weighted_mean() -> None:
    logits, values = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 5, 4, 4)
    expected = (values * torch.softmax(logits.reshape(2, 3, 16), -1).reshape(2, 3, 1, 4, 4)).sum((-1, -2))
    assert torch.allclose(attend(logits, values), expected, atol=1e-6)


def test_degrading_is_deterministic_and_stays_in_range() -> None:
    pictures = scene_pool("degrade", 8).pictures.float() / 127.5 - 1
    a, b = (degrade(pictures, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, pictures)
    assert a.abs().max() <= 1
    assert (a - pictures).abs().mean() < 0.15


def test_the_shipped_detector_finds_objects_at_any_size() -> None:
    figures = detector_figures(Detector.load(), count=64)
    assert figures["detector_presence"] > 0.99 and figures["detector_iou"] > 0.85
    scene = sample_scene(random.Random(4), kinds=("house", "tree"), time="day")
    picture = render(scene)
    small, large = Detector.load().detect([picture, resize(picture, 256, 128)])
    assert set(small) == {e.kind for e in scene.objects} == set(large)
    house = scene.find("house")
    assert house is not None
    for one, other in zip(small["house"].box, pixel_box(house), strict=True):
        assert abs(one - other) <= 2
    for one, other, factor in zip(large["house"].box, pixel_box(house), (4, 2, 4, 2), strict=True):
        assert abs(one - other * factor) <= 3 * factor


def test_the_shipped_judge_tells_objects_and_sky_apart() -> None:
    judge = Judge.load()
    figures = judge_figures(judge, count=64)
    assert figures["judge_objects"] > 0.97 and figures["judge_sky"] > 0.99
    scene = sample_scene(random.Random(5), kinds=("house", "mountains"), time="dusk")
    kinds = [e.kind for e in scene.objects]
    finishes: list[dict[str, bool]] = [{"sky": sky} | dict.fromkeys(kinds, fine) for sky, fine in ((False, True), (True, False))]
    shares = [finish_shares(judge.finish([render(with_finish(scene, finish))]), [kinds]) for finish in finishes]
    assert shares[0].objects is not None and shares[0].objects > 0.8 and shares[0].sky is not None and shares[0].sky < 0.2
    assert shares[1].objects is not None and shares[1].objects < 0.2 and shares[1].sky is not None and shares[1].sky > 0.8
    assert finish_shares([], []) == (None, None)
