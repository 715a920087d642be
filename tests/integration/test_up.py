"""`sfumato up`: the whole system comes up, is told where it is, mends itself, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from sfumato.runtime.supervisor import serving
from sfumato.runtime.system import System, find_system

ROOT = Path(__file__).parents[2]
SECONDS = 120.0
SERVICES = {"generator", "grounding", "scoring", "trainer", "registry", "orchestrator"}


def sfumato(*words: str) -> list[str]:
    return [sys.executable, "-m", "sfumato.cli.main", *words]


def wait_until(met: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def members(up: psutil.Process) -> dict[str, psutil.Process]:
    """The processes that it keeps up, by module."""
    found = {}
    for child in up.children():
        line = child.cmdline()
        found[line[line.index("-m") + 1] if "-m" in line else Path(line[0]).name] = child
    return found


def test_the_system_comes_up_mends_itself_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SFUMATO_RUNS": str(tmp_path)}
    line = sfumato("up", "--backend", "transformers", "--ports", "auto", "--workers", "1", "--json")
    with (tmp_path / "view").open("wb") as view:
        process = subprocess.Popen(line, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=view)
    processes: list[psutil.Process] = []
    try:
        wait_until(lambda: find_system(tmp_path) or process.poll() is not None, "it did not come up")
        system = find_system(tmp_path)
        assert system is not None, (tmp_path / "view").read_text()
        assert {member.service for member in system.members.values()} == SERVICES
        assert all(serving(member.address) for member in system.members.values())
        for member in system.members.values():
            assert b"sfumato_requests" in urllib.request.urlopen(f"http://{member.metrics}/metrics").read()

        second = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
        assert second.returncode == 1 and "is up already" in second.stderr

        running = members(psutil.Process(process.pid))
        processes = list(running.values())
        killed, bus = running["services.scoring.app"], running["nats-server"]
        killed.kill()
        bus.kill()
        wait_until(lambda: not serving(system.address("scoring")), "it is dead")
        wait_until(lambda: serving(system.address("scoring")), "it did not come back")
        wait_until(lambda: (tmp_path / "view").read_text().count("it is up again") == 2, (tmp_path / "view").read_text())
        processes += members(psutil.Process(process.pid)).values()

        ended = subprocess.run(sfumato("down"), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
        assert ended.stdout == "The system is down.\n"
        told, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0 and System.model_validate(json.loads(told)) == system
        assert find_system(tmp_path) is None and not [other for other in processes if other.is_running()]
        view_text = (tmp_path / "view").read_text()
        assert "SIGKILL" in view_text and "Traceback" not in view_text
        assert '"message": "Draining."' in (tmp_path / "logs" / "scoring.log").read_text()
    finally:
        process.kill()


def test_nothing_outlives_a_system_that_is_killed(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SFUMATO_RUNS": str(tmp_path)}
    line = sfumato("up", "--backend", "transformers", "--ports", "auto", "--workers", "1")
    process = subprocess.Popen(line, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(psutil.Process(process.pid).children()) >= 2, "nothing was started")
        left = psutil.Process(process.pid).children()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(left, timeout=SECONDS)
    assert not alive
