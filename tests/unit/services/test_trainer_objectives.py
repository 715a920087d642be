"""A training objective is one file and one entry of the catalog: Diffusion-DPO, which is not shipped, is trained by the same handler."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from services.trainer.objectives import catalog
from services.trainer.tasks import HANDLERS
from sfumato.errors import InvalidInput
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.tasks import Output, Task
from tests.unit.diffusion import tiny

FILE = '''
"""Diffusion-DPO (Wallace et al. 2023, equation 14): the model with the adapter against the model without, on X' preferred to X."""

import torch
from torch.nn.functional import logsigmoid

from services.trainer.loss import prediction_error
from services.trainer.pairs import FitPlan, PairObjective

BETA = 50.0


def loss(context, rows, phi):
    def errors():
        return [prediction_error(context, picture, rows).square().flatten(1).mean(1) for picture in rows.pictures]

    with torch.no_grad():
        preferred_before, other_before = errors()
    with phi.attached():
        preferred, other = errors()
    return -logsigmoid(-BETA * ((preferred - preferred_before) - (other - other_before)))


def plan(settings):
    return (FitPlan(("after", "before"), settings.steps_after),)


DPO = PairObjective("dpo", plan, loss)
'''


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny.flux().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def dpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one file, and the one entry."""
    (tmp_path / "toy_dpo.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_dpo", raising=False)
    monkeypatch.setitem(catalog.OBJECTIVES, "dpo", importlib.import_module("toy_dpo").DPO)


def train(model: Path, folder: Path, **params: Any) -> Output:
    store, items = ArtifactStore(str(folder)), []
    for seed in (1, 2):
        before, after = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(seed)).unbind()
        names = {name: store.put(save({"latents": each.contiguous()})) for name, each in (("before", before), ("after", after))}
        items.append({"prompt": "a red house", "seed": seed, **names})
    given = {"rank": 2, "batch": 2, "steps_before": 1, "steps_after": 20, "learning_rate": 5e-3, "width": 32, "height": 32, "adapter": ""}
    task = Task(
        stage="any", kind="trainer.train", items=tuple(items), params=given | params, model=model_version(model), model_reference=str(model)
    )
    return HANDLERS[task.kind](task, store)


@pytest.mark.usefixtures("dpo")
def test_it_starts_undecided_and_learns_the_preference(model: Path, tmp_path: Path) -> None:
    output = train(model, tmp_path / "store", objective="dpo")
    assert set(output.files) == {"0.safetensors", "1.safetensors"}
    for value in output.values:
        assert value["diverged"] == "" and len(value["losses"]) == 20
        start, _, end = value["probes"][0]
        assert start == pytest.approx(math.log(2), abs=1e-6)  # an untrained adapter changes nothing: both pictures are as probable
        assert end < start


def test_an_objective_that_is_not_in_the_catalog_is_refused_with_those_that_are(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'dpo' is unknown. Known objectives: differential, naive"):
        train(model, tmp_path / "store", objective="dpo")
    with pytest.raises(InvalidInput, match="objective"):
        train(model, tmp_path / "store", objective="joint")  # a task of its own kind
