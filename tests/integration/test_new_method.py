"""Adding a method is adding a folder: one that sfumato does not know is planned, run, killed, resumed, reported and registered.

The method lies in a temporary folder with an entry point, as a package of a third party would bring it; no file of sfumato names it. Its
tasks are done by the real services on the shipped weights.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sfumato.runtime.processes import free_ports
from tests.unit.bus_system import System, running

ROOT = Path(__file__).parents[2]
METHOD = Path(__file__).parent / "methods" / "brightest"
SCENES = ("a red house by day", "a full moon over mountains", "a tree and a cloud", "a boat on a lake", "a sun over hills")
SPEC = "name: bright\nrecipe: brightest\nbatch: 2\nprompts: {file: scenes.txt, count: 5, seed: 7}\npaint: {steps: 2}\n"
FILES = ("adapter.safetensors", "report.html", "report.json")


@dataclass(frozen=True)
class Installation:
    """A folder with the method, and an environment in which every process finds it."""

    folder: Path
    environment: dict[str, str]

    @property
    def spec(self) -> Path:
        return self.folder / "bright.yaml"

    def line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "sfumato.cli.main", *arguments]

    def sfumato(self, *arguments: str) -> str:
        """What a command prints."""
        done = subprocess.run(self.line(*arguments), capture_output=True, text=True, cwd=ROOT, env=self.environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def killed(self, sign: str, *arguments: str) -> None:
        """Begin a run, and kill it with all its workers once its journal has a line with ``sign``."""
        with subprocess.Popen(self.line(*arguments), cwd=ROOT, env=self.environment, start_new_session=True) as process:
            runs = Path(arguments[-1])
            while not any(sign in path.read_text() for path in runs.glob("*/metrics.jsonl")):
                assert process.poll() is None, "the run ended before it could be killed"
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(METHOD, folder / "brightest")
    metadata = folder / "brightest-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: brightest\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[sfumato.recipes]\nbrightest = brightest:RECIPE\n")
    (folder / "scenes.txt").write_text("".join(f"{scene}\n" for scene in SCENES))
    (folder / "bright.yaml").write_text(SPEC)
    return Installation(folder, os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "SFUMATO_WORKERS": "1"})


@pytest.fixture(scope="module")
def undisturbed(installed: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on this machine that registered its models."""
    runs = tmp_path_factory.mktemp("undisturbed")
    told = json.loads(installed.sfumato("run", str(installed.spec), "--json", "--local", "--register", "--runs", str(runs)))
    return runs / told["id"]


def registered(installed: Installation, runs: Path) -> list[dict[str, Any]]:
    return json.loads(installed.sfumato("models", "ls", "--json", "--local", "--runs", str(runs)))["versions"]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_no_file_of_sfumato_names_the_method() -> None:
    names = subprocess.run(["git", "grep", "-l", "brightest"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert all(name.startswith(("tests/integration/methods/", "tests/integration/test_new_method.py", "docs/")) for name in names), names


def test_its_plan_has_its_stages_and_their_costs(installed: Installation) -> None:
    plan = json.loads(installed.sfumato("run", str(installed.spec), "--plan", "--json"))
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    assert list(stages) == ["paint", "score", "train"]
    assert stages["paint"]["run"] == {"tasks": 6, "forwards": 20, "questions": 0, "pictures": 0}
    assert plan["iterations_at_most"] == 2
    assert [row["field"] for row in plan["prompts"]] == ["prompts"]


def test_a_spec_that_it_refuses_is_refused_by_field(installed: Installation, tmp_path: Path) -> None:
    shutil.copy(installed.folder / "scenes.txt", tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_text(SPEC.replace("count: 5", "count: 9") + "iterations: 99\ntrain: {}\n")
    line = installed.line("run", str(bad), "--local")
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=installed.environment, check=False)
    assert done.returncode == 2
    for words in ("spec.iterations", "spec.train", "inputs.scenes: 5 prompts were given"):
        assert words in done.stderr


def test_it_runs_reports_and_registers_its_models(installed: Installation, undisturbed: Path) -> None:
    figures = json.loads((undisturbed / "report.json").read_text())
    assert figures["recipe"] == "brightest"
    assert figures["prompts"] == list(SCENES)
    assert len(figures["best"]) == 2
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert {(line["phase"], line["iteration"], line["stage"]) for line in lines} == {
        ("round", iteration, stage) for iteration in (1, 2) for stage in ("paint", "score", "train")
    }
    assert all("aesthetic" in line for line in lines if line["stage"] == "score")
    versions = registered(installed, undisturbed.parent)
    name = undisturbed.name
    assert [version["note"] for version in versions] == [f"{name}, iteration 2", f"{name}, iteration 1", "vista, as it is"]
    assert (undisturbed / "latest-pair.png").is_file()


def test_a_run_that_was_killed_resumes_to_the_same_bytes(installed: Installation, undisturbed: Path, tmp_path: Path) -> None:
    installed.killed('"stage": "score"', "run", str(installed.spec), "--local", "--runs", str(tmp_path))
    assert not (tmp_path / undisturbed.name / "report.json").exists()
    installed.sfumato("run", "--resume", undisturbed.name, "--local", "--runs", str(tmp_path))
    assert contents(tmp_path / undisturbed.name) == contents(undisturbed)


def answers(port: int) -> bool:
    with closing(socket.socket()) as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def replica(system: System, installed: Installation, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """An orchestrator of the system that has the method installed."""
    environment = system.environment() | {
        "PYTHONPATH": installed.environment["PYTHONPATH"],
        "SFUMATO_GRPC_ADDRESS": f"127.0.0.1:{port}",
        "SFUMATO_ORCHESTRATOR_LEASE": "2",
    }
    with (system.folder / "orchestrator.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "orchestrator.app"], env=environment, stdout=log, stderr=log, cwd=ROOT)
    try:
        while not answers(port):
            assert process.poll() is None, (system.folder / "orchestrator.log").read_text()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_over_the_bus_through_the_death_of_its_driver_to_the_same_bytes(
    installed: Installation, undisturbed: Path, tmp_path: Path
) -> None:
    ports, runs = free_ports([0, 0]), tmp_path / "runs"
    servers = ",".join(f"127.0.0.1:{port}" for port in ports)
    with running(tmp_path / "system", ack_wait=20.0) as system, ExitStack() as stack:
        first = stack.enter_context(replica(system, installed, ports[0]))
        for service in ("generator", "scoring", "trainer"):
            system.worker(service, f"services.{service}.tasks")
        line = installed.line("run", str(installed.spec), "--server", servers, "--runs", str(runs))
        with subprocess.Popen(line, cwd=ROOT, env=installed.environment, stderr=subprocess.PIPE, text=True) as client:
            manifests = tmp_path / "system" / "artifacts" / "manifests"
            while not list(manifests.glob("*/*.json")):  # it is under way
                assert client.poll() is None, client.communicate()[1]
                time.sleep(0.1)
            first.kill()
            stack.enter_context(replica(system, installed, ports[1]))
            said = client.communicate()[1]
        assert client.returncode == 0, said
        assert contents(runs / undisturbed.name) == contents(undisturbed)
        store = {"SFUMATO_ARTIFACTS": str(tmp_path / "system" / "artifacts")}
        there = Installation(installed.folder, installed.environment | store)
        told = json.loads(there.sfumato("models", "register", undisturbed.name, "--json", "--local", "--runs", str(tmp_path / "registry")))
        assert [version["id"] for version in told["versions"]] == [
            version["id"] for version in reversed(registered(installed, undisturbed.parent)[:2])
        ]
