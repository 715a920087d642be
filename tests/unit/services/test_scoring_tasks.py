"""The scoring task: payload to engine and back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.scoring.engine import ScoringEngine
from services.scoring.loading import load_scorers
from services.scoring.tasks import HANDLERS
from sfumato.errors import InvalidInput, MissingWeights
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png
from sfumato.runtime.models.references import scorers_version
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Task
from sfumato.vista import weights
from sfumato.vista.world import render, sample_scene


def task(store: ArtifactStore, params: dict[str, object]) -> Task:
    rng = random.Random(2)
    items = tuple({"prompt": "a house and a tree", "picture": store.put(encode_png(render(sample_scene(rng))))} for _ in range(2))
    named = {"model": scorers_version("clip", {}, Settings()), "model_reference": "clip"}
    return Task(stage="score", kind="scoring.score", items=items, params=params, **named)


def test_values_are_numbers_by_metric_in_the_order_of_the_items(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    job = task(store, {"metrics": ["nudenet", "clip"]})
    rng = random.Random(2)
    images = [render(sample_scene(rng)) for _ in range(2)]
    expected = ScoringEngine(load_scorers(["nudenet", "clip"])).score(images, ["a house and a tree"] * 2)
    assert HANDLERS["scoring.score"](job, store).values == expected


def test_a_named_model_takes_the_place_of_vistas(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    models = {"clip": str(weights.ROOT / "pickscore")}
    job = task(store, {"metrics": ["clip", "vista-clip"], "models": models})
    with pytest.raises(MissingWeights, match="the scorers .clip. here"):
        HANDLERS["scoring.score"](job, store)
    rows = HANDLERS["scoring.score"](job.model_copy(update={"model": scorers_version("clip", models, Settings())}), store).values
    plain = HANDLERS["scoring.score"](task(store, {"metrics": ["clip"]}), store).values
    assert [row["vista-clip"] for row in rows] == [row["clip"] for row in plain]
    assert all(abs(row["clip"] - row["vista-clip"]) > 0.1 for row in rows)


def test_a_model_that_no_metric_takes_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    with pytest.raises(InvalidInput, match="no model can be named for nudenet"):
        HANDLERS["scoring.score"](task(store, {"metrics": ["nudenet"], "models": {"nudenet": "x"}}), store)


def test_a_picture_is_most_like_itself(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    job = task(store, {"metrics": ["clip"]})
    a, b = (item["picture"] for item in job.items)
    items = ({"a": a, "b": a}, {"a": a, "b": b}, {"a": b, "b": a})
    job = job.model_copy(update={"kind": "scoring.similarity", "items": items, "params": {}})
    same, other, turned = HANDLERS["scoring.similarity"](job, store).values
    assert same == pytest.approx(1.0, abs=1e-5)
    assert other == pytest.approx(turned, abs=1e-5) and other < 0.99
