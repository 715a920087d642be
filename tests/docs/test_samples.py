"""Every sample of README.md, docs/ and services/ runs as it stands there, in the environment that it names."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter
from safetensors.numpy import load_file

from deploy.binaries import HELM, KUBECTL, binary
from orchestrator.recipes.catalog import GROUP
from services.inference.http.keys import Key
from sfumato.runtime.images import decode_image
from sfumato.runtime.processes import free_ports
from sfumato.runtime.system import System
from tests.deploy.charts import rendered
from tests.docs.samples import ENVIRONMENTS, ROOT, Sample, commands, samples

SECONDS = 120.0
GOLDEN = ROOT / "tests" / "integration" / "inference" / "golden.txt"
"""One prompt: a version is served after one picture."""
PICTURES = {"first-pair.png", "latest-pair.png"}
"""Shown while a run is under way; which pair is first depends on timing."""
LANGUAGES = {"bash", "python", "yaml", "toml", "json", "text"}


def test_every_sample_is_fenced_with_its_language_and_names_its_environment() -> None:
    assert len(samples()) > 30
    for sample in samples():
        assert sample.language in LANGUAGES, f"{sample}: {sample.language}"
        assert sample.environment in ENVIRONMENTS, f"{sample}: {sample.environment!r}"
        assert (sample.environment == "shown") == (sample.language == "text"), sample


@dataclass(frozen=True)
class Home:
    """A user's folder in which a system is up: its programs' environment, and the id of the run of docs/clients.md."""

    path: Path
    environment: dict[str, str]
    run: str = ""

    def does(self, program: Sequence[str], place: Path) -> str:
        """The output of a program that ends with status 0 there."""
        done = subprocess.run(program, env=self.environment, cwd=place, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def runs(self, sample: Sample, place: Path) -> str:
        """The output of a sample as it stands, where ID is the run's id."""
        text = re.sub(r"\bID\b", self.run, sample.text)
        return self.does(["bash", "-euo", "pipefail", "-c", text] if sample.language == "bash" else [sys.executable, "-c", text], place)

    def place(self) -> Path:
        """A new folder with the system's runs, the repository's configs/ and helm/, a picture, and adapters."""
        place = Path(tempfile.mkdtemp(dir=self.path))
        for name, target in {"runs": self.path / "runs", "configs": ROOT / "configs", "helm": ROOT / "helm"}.items():
            (place / name).symlink_to(target)
        shutil.copy(self.path / "moon.png", place)
        for name in ("adapter", "pair-1", "pair-2", "iteration-1", "iteration-2"):
            shutil.copy(self.path / "adapter.safetensors", place / f"{name}.safetensors")
        return place


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    path = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SFUMATO_")} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "BENTOML_HOME": str(path / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    home = Home(path, environment)
    up = "sfumato up --backend transformers --ports auto --workers 1 --detach --json"
    system = System.model_validate_json(home.does(up.split(), path))
    try:
        environment |= {service.upper(): system.address(service) for service in ("orchestrator", "generator", "registry")}
        home = Home(path, environment, home.runs(client(), path).split()[0])
        home.does(["sfumato", "models", "register", home.run, "--alias", "production"], path)
        yield home
    finally:
        home.does(["sfumato", "down"], path)


def client() -> Sample:
    """The program of docs/clients.md."""
    (program,) = [sample for sample in samples("system") if sample.page == "docs/clients.md"]
    return program


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_client_of_the_docs_leaves_the_files_of_a_local_run_of_its_spec(home: Home) -> None:
    assert load_file(home.path / "adapter.safetensors")
    assert decode_image((home.path / "moon.png").read_bytes()).shape == (64, 64, 3)
    names: dict[str, Any] = {}
    head, _, _ = client().text.partition("with grpc.insecure_channel")
    exec(compile(head, "clients.md", "exec"), names)
    spec, place = yaml.safe_load(names["SPEC"]), home.place()
    for part, name in (("prompts", "train"), ("evaluate", "heldout")):
        (place / f"{name}.txt").write_text("\n".join(names["INPUTS"][name]) + "\n")
        spec[part]["file"] = f"{name}.txt"
    (place / "spec.yaml").write_text(json.dumps(spec))
    # Its model was registered automatically; registering it again finds it there.
    kept = home.does(["sfumato", "models", "ls", "--json"], place)
    assert home.run in kept
    registered = json.loads(home.does(["sfumato", "models", "register", home.run, "--json"], place))["versions"]
    assert registered[-1]["id"] in kept
    # The same spec from the command line is the same run: nothing is computed again, its files are fetched.
    fetched = place / Path(json.loads(home.does(["sfumato", "run", "spec.yaml", "--json"], place))["report"]).parent
    alone = place / Path(home.does(["sfumato", "run", "spec.yaml", "--local", "--runs", "alone"], place).strip()).parent
    assert alone.name == fetched.name == home.run
    files = {path.name for path in alone.iterdir()} - PICTURES - {"metrics.jsonl"}
    assert files == {path.name for path in fetched.iterdir()} - PICTURES
    assert {"adapter.safetensors", "report.html", "report.json"} <= files
    for name in files:
        assert (fetched / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.fixture(scope="module")
def places() -> dict[str, Path]:
    """The folder in which the samples of each page run, in the page's order."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("sample", [sample for sample in samples("system") if sample != client()], ids=str)
def test_with_a_system_that_is_up(sample: Sample, home: Home, places: dict[str, Path]) -> None:
    if sample.page not in places:
        places[sample.page] = home.place()
    home.runs(sample, places[sample.page])


@pytest.fixture(scope="module")
def exported(home: Home) -> Path:
    place = home.place()
    home.does(["sfumato", "export", "production", "--to", "artaug"], place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("sample", samples("exported"), ids=str)
def test_with_an_exported_version(sample: Sample, home: Home, exported: Path) -> None:
    home.runs(sample, exported)


@pytest.mark.slow
@pytest.mark.parametrize("words", commands("server"), ids=" ".join)
def test_a_server(words: Sequence[str], home: Home) -> None:
    (port,) = free_ports([0])
    line = [*words, "--port", str(port)]  # the last --port is the one that counts
    settings = {"SFUMATO_INFERENCE_REGISTRY": home.environment["REGISTRY"], "SFUMATO_INFERENCE_GOLDEN": str(GOLDEN)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(line, env=home.environment | settings, cwd=home.place(), stdout=log, stderr=log)
        try:
            ready = wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
            process.send_signal(signal.SIGTERM)
            status = process.wait(SECONDS)
        finally:
            process.kill()
        log.seek(0)
        assert ready and status in (0, 128 + signal.SIGTERM), log.read()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether the URL answers 200 before the process ends."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                return answer.status == 200
        except OSError:  # not listening yet, or 503 while the model loads
            time.sleep(0.2)
    return False


@pytest.mark.parametrize("words", commands("planned"), ids=" ".join)
def test_what_takes_hours_is_planned_and_its_options_exist(words: Sequence[str], tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "SFUMATO_RUNS": str(tmp_path)}
    line = planned(words)
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    if "-m" in words:
        assert importlib.util.find_spec(words[words.index("-m") + 1])


def planned(words: Sequence[str]) -> Sequence[str]:
    """The command that plans this one, or else parses its options."""
    if words[:2] == ["sfumato", "run"] and "--resume" not in words:
        return words if "--plan" in words else [*words, "--plan"]
    if words[0] == "make":
        return [*words, "--dry-run"]
    options = words[: words.index("-m")] if "-m" in words else words
    return [*options, "--help"]


@pytest.mark.parametrize("words", commands("cluster"), ids=" ".join)
def test_what_needs_a_cluster_is_rendered(words: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "helm").symlink_to(ROOT / "helm")
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    (tmp_path / "keys.json").write_text("[]")
    program, *rest = words
    if program == "helm" and rest[0] in ("install", "upgrade"):
        of_a_cluster = ("--create-namespace", "--reuse-values", "--reset-then-reuse-values")
        preset = [] if "--values" in rest else ["--values", "helm/sfumato/values-vista-cpu.yaml"]
        line = [binary(HELM), "template", *(word for word in rest[1:] if word not in of_a_cluster), *preset]
    elif program in (HELM, KUBECTL):
        last = ["--dry-run=client", "--output", "yaml"] if "create" in rest else ["--help"]
        line = [binary(program), *rest, *last]
    else:
        (script,) = [word for word in words if word.endswith((".sh", ".py"))]
        parses = "import ast, sys; ast.parse(open(sys.argv[1]).read())"  # py_compile would write beside the chart's files
        line = ["bash", "-n", script] if script.endswith(".sh") else [sys.executable, "-c", parses, script]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    if "--dry-run=client" in line:
        assert yaml.safe_load(done.stdout)["kind"] == "Secret"


@pytest.mark.parametrize("sample", samples("values"), ids=str)
def test_a_file_of_the_users_is_read(sample: Sample, tmp_path: Path) -> None:
    if sample.language == "yaml":
        (tmp_path / "values.yaml").write_text(sample.text)
        assert rendered("vista-cpu", "--values", str(tmp_path / "values.yaml"))
    elif sample.language == "json":
        assert TypeAdapter(list[Key]).validate_json(sample.text)
    else:
        assert set(tomllib.loads(sample.text)["project"]["entry-points"]) == {GROUP}
