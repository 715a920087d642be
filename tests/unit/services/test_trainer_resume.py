"""A training that is killed goes on where it stood and ends in the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from services.trainer import tasks
from services.trainer.engine import train_pairs
from services.trainer.objectives.objective import TrainedAdapter
from services.trainer.pairs import TrainingPair, TrainSettings
from services.trainer.served import model_of
from sfumato.errors import BrokenWeights
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.tasks import Task
from tests.unit.diffusion import tiny

PARAMS: dict[str, Any] = {"rank": 2, "batch": 2, "steps_before": 5, "steps_after": 7, "width": 32, "height": 32, "adapter": ""}


class Memory:
    """A checkpoint in memory, after every step; it remembers all it was given."""

    interval = 0.0

    def __init__(self, data: bytes | None = None) -> None:
        self.start, self.saved = data, []

    def load(self) -> bytes | None:
        return self.start

    def save(self, data: bytes) -> None:
        self.saved.append(data)


def latents(seed: int) -> torch.Tensor:
    return torch.randn(16, 16, generator=torch.Generator().manual_seed(seed))


def work(store: ArtifactStore, model: Path) -> Task:
    names = [store.put(save({"latents": latents(seed)})) for seed in range(4)]
    items = tuple({"prompt": "a red house", "seed": seed, "before": names[2 * seed], "after": names[2 * seed + 1]} for seed in range(2))
    version = model_version(model)
    return Task(stage="train", kind="trainer.train", items=items, params=PARAMS, model=version, model_reference=str(model))


def test_a_worker_killed_in_the_middle_of_phi_2_leaves_a_checkpoint_that_ends_in_the_same_bytes(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny.flux().save_pretrained(model)
    disturbed, undisturbed = ArtifactStore(str(tmp_path / "disturbed")), ArtifactStore(str(tmp_path / "undisturbed"))
    task = work(disturbed, model)
    work(undisturbed, model)
    (tmp_path / "task.json").write_text(task.model_dump_json())
    line = [sys.executable, "-m", "tests.unit.services.killed_training", disturbed.url, str(tmp_path / "task.json")]
    killed = subprocess.run(line, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    key = tasks.StoredCheckpoint(disturbed, task.id).key
    assert disturbed.read_key(key) is not None
    forwards = []
    hook = model_of(model.resolve(), "float32").pipeline.transformer.register_forward_hook(lambda *_: forwards.append(1))
    resumed = tasks.train(task, disturbed)
    hook.remove()
    expected = tasks.train(task, undisturbed)
    assert resumed == expected
    assert len(forwards) == 3 + 2 * 4  # the steps of phi_2 that were left, and its two probes of eight draws
    assert disturbed.read_key(key) is None


def test_every_moment_of_a_training_can_be_gone_on_from() -> None:
    pipeline = tiny.flux()
    settings = TrainSettings(rank="auto", batch=3, steps_before=3, steps_after=2, learning_rate=5e-3)
    pairs = [TrainingPair("a red house", latents(seed), latents(seed + 9), seed, 32, 32) for seed in range(2)]
    checkpoint = Memory()
    whole = train_pairs(pipeline, pairs, settings, checkpoint)
    for data in checkpoint.saved[::3]:
        for result, expected in zip(train_pairs(pipeline, pairs, settings, Memory(data)), whole, strict=True):
            assert isinstance(result, TrainedAdapter) and isinstance(expected, TrainedAdapter)
            assert (result.losses, result.probes, result.rank) == (expected.losses, expected.probes, expected.rank)
            for name, factors in expected.adapter.factors.items():
                assert all(torch.equal(a, b) for a, b in zip(factors, result.adapter.factors[name], strict=True))


def test_a_checkpoint_holds_plain_tensors_and_a_damaged_one_is_refused_in_words() -> None:
    pipeline = tiny.flux()
    checkpoint = Memory()
    settings = TrainSettings(rank=2, batch=2, steps_before=1, steps_after=1)
    train_pairs(pipeline, [TrainingPair("a tree", latents(0), latents(1), 0, 32, 32)], settings, checkpoint)
    assert "from 0, rank 2, first|losses" in load(checkpoint.saved[-1])
    for data in (checkpoint.saved[-1][:-1], save({"other": torch.zeros(1)})):
        with pytest.raises(BrokenWeights, match="starts from the beginning"):
            train_pairs(pipeline, [TrainingPair("a tree", latents(0), latents(1), 0, 32, 32)], settings, Memory(data))
