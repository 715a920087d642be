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
from typing import Any

import psutil
import torch
from typer.testing import CliRunner

from sfumato.cli.main import app
from sfumato.lora.adapter import Adapter
from sfumato.lora.files import save
from sfumato.runtime.child_processes import program_of
from sfumato.runtime.supervisor import serving
from sfumato.runtime.system import System, find_system

PROMPT = "a full moon over mountains and a lake at night"
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
    """The programs that it keeps up, by module; each is the child of a guard."""
    found = {}
    for child in up.children():
        line = program_of(child)
        for program in child.children():
            found[line[line.index("-m") + 1] if "-m" in line else Path(line[0]).name] = program
    return found


def small_adapter() -> Adapter:
    """A LoRA of Vista's denoiser, strong enough to be seen."""
    a, b = torch.randn(2, 128, generator=torch.Generator().manual_seed(0)), torch.randn(128, 2, generator=torch.Generator().manual_seed(1))
    return Adapter({"single_transformer_blocks.0.attn.to_q": (0.2 * a, 0.2 * b)})


def what_counts(answer: str) -> Any:
    """The answer, but for how long it took and where it was put."""
    told = json.loads(answer)
    return {key: value for key, value in told.items() if key not in ("file", "seconds")} if isinstance(told, dict) else told


def the_same_is_answered_as_in_this_process(environment: dict[str, str], folder: Path) -> None:
    """Generate, score and ground: by the services that are up, and with --local."""

    def there(*words: str) -> Any:
        done = subprocess.run(sfumato(*words), env=environment, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        return what_counts(done.stdout)

    def here(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words, "--local"])
        assert done.exit_code == 0, done.output
        return what_counts(done.stdout)

    first, second, lora = (str(folder / name) for name in ("1.png", "2.png", "lora.safetensors"))
    save(small_adapter(), Path(lora))
    paint = ("generate", PROMPT, "--seed", "7", "--steps", "4", "--regions", '[{"bbox": [0, 0, 32, 32], "prompt": "stars"}]', "--json")
    fused = (*paint, "--adapter", lora, "--scale", "0.5")
    assert there(*fused, "-o", first) == here(*fused, "-o", second)
    assert Path(first).read_bytes() == Path(second).read_bytes()
    score = ("score", first, first, "--prompt", PROMPT, "--metrics", "clip,pickscore", "--json")
    assert there(*score) == here(*score)
    ground = ("ground", first, "--prompt", PROMPT, "--json")
    assert there(*ground) == here(*ground, "--backend", "transformers")
    refused = subprocess.run(sfumato(*paint, "--width", "72"), env=environment, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert refused.returncode == 2 and refused.stderr.startswith("sfumato: width: 72 is not supported")


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

        the_same_is_answered_as_in_this_process(environment, tmp_path)
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


def test_nothing_outlives_a_killed_system_even_if_it_is_stopped(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SFUMATO_RUNS": str(tmp_path)}
    line = sfumato("up", "--backend", "transformers", "--ports", "auto", "--workers", "1")
    process = subprocess.Popen(line, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(members(psutil.Process(process.pid))) >= 2, "nothing was started")
        left = psutil.Process(process.pid).children(recursive=True)
        for program in members(psutil.Process(process.pid)).values():
            program.suspend()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(left, timeout=SECONDS)
    assert not alive
