"""One training by two processes that torchrun starts, with gloo between them: the bytes of one process, also when one of them is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from services.trainer.tasks import HANDLERS, StoredCheckpoint
from sfumato.errors import InvalidInput
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.processes import free_ports
from sfumato.runtime.tasks import Manifest, Task, perform
from tests.unit.bus_system import System, running
from tests.unit.diffusion import tiny

SETTINGS: dict[str, Any] = {"rank": 2, "learning_rate": 5e-3, "pictures": 4, "together": 1, "seed": 3, "width": 32, "height": 32}
MINUTES = 60.0


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("system"), ack_wait=5.0) as up:
        yield up


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.flux().save_pretrained(folder)
    return str(folder)


def task(store: ArtifactStore, model: str, **more: Any) -> Task:
    generator, items = torch.Generator().manual_seed(1), []
    for prompt in ("a red house", "a lake by night", "two birds"):
        items.append({"prompt": prompt, "latents": store.put(save({"latents": torch.randn(16, 16, generator=generator)}))})
    params = SETTINGS | {"steps": 150, "adapter": ""} | more
    version = model_version(Path(model))
    return Task(stage="train", kind="joint.train", items=tuple(items), params=params, model=version, model_reference=model)


def alone(wanted: Task, folder: Path, system: System) -> Manifest:
    """What this very process makes of it."""
    store = ArtifactStore(str(folder))
    for item in wanted.items:
        store.put(system.artifacts.get(item["latents"]))
    return perform(wanted, HANDLERS[wanted.kind], store, {})


@contextmanager
def two(system: System) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun with two processes, as a job's two pods would have one each; ended with the block."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    line += [f"--master-port={free_ports([0])[0]}", "-m", "services.trainer.distributed"]
    said = {"SFUMATO_LOG_FORMAT": "text", "SFUMATO_LOG_LEVEL": "DEBUG"}
    environment = system.environment() | said | {"SFUMATO_MODEL_FOLDERS": "true"}
    with (system.folder / "joint.log").open("ab") as log:
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def told(system: System) -> str:
    return (system.folder / "joint.log").read_text()


@pytest.mark.timeout(600)
def test_two_processes_come_to_the_bytes_of_one_also_when_one_of_them_is_killed(
    system: System, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_MODEL_FOLDERS", "true")
    wanted = task(system.artifacts, model)
    expected = alone(wanted, tmp_path / "artifacts", system)
    assert expected.values[0]["losses"] and not expected.values[0]["diverged"]
    with system.transport() as transport:
        transport.submit(wanted)
        with two(system) as first:
            deadline = time.monotonic() + 3 * MINUTES
            while "begun" not in told(system) and first.poll() is None:
                assert time.monotonic() < deadline, told(system)
                time.sleep(0.1)
            follower = re.search(r"Process 1 of 2, pid (\d+)", told(system))
            assert follower is not None
            os.kill(int(follower[1]), signal.SIGKILL)
            assert first.wait(2 * MINUTES) != 0, told(system)  # a cluster starts it again
        with two(system) as second:
            found = transport.next()
            assert second.wait(2 * MINUTES) == 0, told(system)
    assert found.task_id == wanted.id
    assert (found.values, found.files) == (expected.values, expected.files)
    assert StoredCheckpoint(system.artifacts, wanted.id).load() is None


@pytest.mark.timeout(600)
def test_what_cannot_be_done_is_said_once_and_the_processes_end_in_good_order(system: System, model: str) -> None:
    with system.transport() as transport:
        transport.submit(task(system.artifacts, model, together=3))
        with two(system) as processes:
            with pytest.raises(InvalidInput) as refused:
                transport.next()
            assert processes.wait(2 * MINUTES) == 0, told(system)
    assert refused.value.field == "together"


@pytest.mark.timeout(600)
def test_where_there_is_nothing_to_do_they_end(system: System) -> None:
    with two(system) as processes:
        assert processes.wait(3 * MINUTES) == 0, told(system)
