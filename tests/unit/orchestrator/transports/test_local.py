"""Local workers end with what they have started: when they are ended, when they are killed, and when the run is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.transports.local import LocalService, LocalTransport
from sfumato.errors import Unavailable
from sfumato.runtime.tasks import Task

ROOT = Path(__file__).parents[4]
MODULE = "tests.unit.orchestrator.workers"
SECONDS = 60.0
# A run whose worker is at work, and has started a process.
RUN = f"""
import sys
from orchestrator.transports.local import LocalService, LocalTransport
from sfumato.runtime.tasks import Task

with LocalTransport({{"echo": LocalService("{MODULE}")}}, sys.argv[1]) as transport:
    transport.submit(Task(stage="s", kind="echo.parent", items=(sys.argv[2],), params={{}}, model="m", model_reference=""))
    transport.next()
"""


def parent(notes: Path) -> Task:
    """A task whose worker starts a process and does not end; the numbers of both are written to a file."""
    return Task(stage="s", kind="echo.parent", items=(str(notes),), params={}, model="m", model_reference="")


def wait_until(met: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def at_work(notes: Path) -> list[int]:
    """The worker and the process that it has started."""
    wait_until(lambda: notes.exists() and notes.read_text().endswith("\n"), "it is not at work")
    return [int(number) for number in notes.read_text().split()]


def alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_a_worker_has_started_ends_with_the_transport(tmp_path: Path) -> None:
    with LocalTransport({"echo": LocalService(MODULE)}, str(tmp_path)) as transport:
        transport.submit(parent(tmp_path / "notes"))
        found = at_work(tmp_path / "notes")
        assert all(map(alive, found))
    assert not any(map(alive, found))


def test_a_killed_worker_is_an_error_and_what_it_has_started_ends(tmp_path: Path) -> None:
    with LocalTransport({"echo": LocalService(MODULE)}, str(tmp_path)) as transport:
        transport.submit(parent(tmp_path / "notes"))
        found = at_work(tmp_path / "notes")
        os.kill(found[0], signal.SIGKILL)
        with pytest.raises(Unavailable, match="Worker echo-0 ended with code -9"):
            transport.next()
        assert not any(map(alive, found))


def test_workers_at_work_end_when_the_run_is_killed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    line = [sys.executable, "-c", RUN, str(tmp_path), str(notes)]
    with subprocess.Popen(line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as run:
        found = at_work(notes)
        run.kill()
    wait_until(lambda: not any(map(alive, found)), "a worker works on")
