"""NudeNet: the real detector on decent pictures, and its real post-processing on outputs made up here."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.scoring.engine import ScoringEngine
from services.scoring.loading import load_scorers
from services.scoring.nudenet import NudeNetScorer
from sfumato.errors import BrokenWeights
from sfumato.runtime.images import read_image
from sfumato.runtime.models import nudenet as module
from sfumato.runtime.models.nudenet import THRESHOLD, UNSAFE, is_unsafe
from sfumato.types import Image
from sfumato.vista.world import render, sample_scene

SIDE = 320


@pytest.fixture(scope="module")
def engine() -> ScoringEngine:
    return ScoringEngine(load_scorers(["nudenet"]))


def portrait() -> Image:
    """Matplotlib's sample picture: Grace Hopper in uniform."""
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    return read_image(Path(spec.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg", "image")


class Made:
    """Stands where the network stood in the detector: one box of one class a picture, whatever it sees."""

    def __init__(self, label: str, score: float) -> None:
        from nudenet.nudenet import __dict__ as names

        output = np.zeros((1, 4 + 18, 2100), np.float32)
        output[0, :4, 7] = (160, 160, 80, 80)
        output[0, 4 + names["__labels"].index(label), 7] = score
        self.output = output

    def run(self, _: None, feed: dict[str, Any]) -> list[np.ndarray]:
        (pixels,) = feed.values()
        assert pixels.shape[1:] == (3, SIDE, SIDE)
        return [np.repeat(self.output, len(pixels), axis=0)]


def test_pictures_of_this_world_are_decent(engine: ScoringEngine) -> None:
    rng = random.Random(5)
    images = [render(sample_scene(rng)) for _ in range(12)]
    assert engine.score(images, ["a moon"] * 12) == [{"nudenet": 0.0}] * 12


def test_fewer_are_better_and_the_version_is_the_packages(engine: ScoringEngine) -> None:
    (metric,) = engine.metrics
    assert (metric.low, metric.high, metric.higher_is_better) == (0.0, 1.0, False)
    assert metric.version.startswith("nudenet-3.")


def test_a_portrait_is_seen_and_decent(engine: ScoringEngine) -> None:
    scorer = NudeNetScorer.load()
    (found,) = scorer.detector.detector.detect(portrait())
    assert found["class"] == "FACE_FEMALE" and found["score"] > 0.7
    assert engine.score([portrait()], ["a portrait"]) == [{"nudenet": 0.0}]


def test_it_fires_where_the_network_sees_what_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with the face that the network does see taken for the thing to be counted."""
    monkeypatch.setattr(module, "UNSAFE", frozenset({"FACE_FEMALE"}))
    sky = np.full((64, 64, 3), (120, 170, 230), np.uint8)
    rows = ScoringEngine(load_scorers(["nudenet"])).score([sky, portrait(), sky], ["a portrait"] * 3)
    assert [row["nudenet"] for row in rows] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("label", sorted(UNSAFE))
@pytest.mark.parametrize(("score", "expected"), [(THRESHOLD + 0.01, 1.0), (THRESHOLD - 0.01, 0.0)])
def test_every_listed_class_counts_above_the_threshold(label: str, score: float, expected: float) -> None:
    scorer = NudeNetScorer.load()
    scorer.detector.detector.onnx_session = Made(label, score)
    images = [np.zeros((height, 64, 3), np.uint8) for height in (64, 48)]
    assert ScoringEngine([scorer]).score(images, ["a moon"] * 2) == [{"nudenet": expected}] * 2


@pytest.mark.parametrize("label", ["FACE_MALE", "FEET_EXPOSED", "BELLY_EXPOSED", "FEMALE_BREAST_COVERED", "MALE_BREAST_EXPOSED"])
def test_other_classes_never_count(label: str) -> None:
    assert not is_unsafe([{"class": label, "score": 0.99}])


def test_a_damaged_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nudenet

    (tmp_path / "320n.onnx").write_bytes(Path(nudenet.__file__).with_name("320n.onnx").read_bytes()[:1000])
    monkeypatch.setattr(nudenet, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(BrokenWeights, match="Reinstall it"):
        NudeNetScorer.load()
