"""The generator's tasks on a saved model and a real store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.generator.tasks import HANDLERS
from sfumato.errors import InvalidInput
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import decode_image, encode_png
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.tasks import Task
from tests.unit.diffusion import tiny

PARAMS: dict[str, Any] = {"adapter": "", "width": 32, "height": 32, "steps": 2, "guidance": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.flux().save_pretrained(folder)
    return str(folder)


def _painted(folder: Path, model: str, start: dict[str, Any] | None = None, **params: Any) -> np.ndarray:
    item = {"prompt": "a red house", "seed": 3, "regions": [{"prompt": "a lake", "box": [0, 0, 16, 32]}]}
    item |= {} if start is None else {"start": start}
    named = {"model": model_version(Path(model)), "model_reference": model}
    task = Task(stage="any", kind="generator.paint", items=(item,), params=PARAMS | params, **named)
    return decode_image(HANDLERS[task.kind](task, ArtifactStore(str(folder))).files["0.png"]).astype(int)


def test_precision_and_the_reach_of_advice_are_the_tasks(tmp_path: Path, model: str) -> None:
    plain = _painted(tmp_path, model)
    assert np.array_equal(plain, _painted(tmp_path, model, precision="float32", regional_steps=1.0, soft_edges=0.0))
    half = _painted(tmp_path, model, precision="bfloat16")
    assert 0 < np.abs(plain - half).max() < 64
    assert np.abs(plain - _painted(tmp_path, model, memory=1)).max() <= 1  # a row at a time: the same but for rounding
    assert not np.array_equal(plain, _painted(tmp_path, model, regional_steps=0.5))
    assert not np.array_equal(plain, _painted(tmp_path, model, soft_edges=8.0))


def test_noise_on_the_condition_and_a_start_are_the_tasks(tmp_path: Path, model: str) -> None:
    plain = _painted(tmp_path, model)
    assert np.array_equal(plain, _painted(tmp_path, model, condition_noise=0.0))
    noised = _painted(tmp_path, model, condition_noise=0.5)
    assert not np.array_equal(plain, noised)
    picture = ArtifactStore(str(tmp_path)).put(encode_png(noised.astype(np.uint8)))
    assert not np.array_equal(plain, _painted(tmp_path, model, {"picture": picture, "strength": 0.5}))
    assert np.array_equal(plain, _painted(tmp_path, model, {"picture": picture, "strength": 1.0}))


def test_an_unknown_precision_is_refused_by_its_field(tmp_path: Path, model: str) -> None:
    with pytest.raises(InvalidInput, match="precision: 'int4'"):
        _painted(tmp_path, model, precision="int4")
