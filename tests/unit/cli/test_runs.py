"""`sfumato run --server`, `sfumato runs` and `sfumato review` against real replicas over a real bus; workers' answers are made up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.recipes.artaug import RECIPE
from orchestrator.runs.records import Records
from sfumato.cli.main import app
from sfumato.errors import Faults, NotFound, SfumatoError, Unavailable, WrongState
from tests.unit.bus_system import ROOT
from tests.unit.orchestrator.rehearsal import rehearse, write_spec
from tests.unit.orchestrator.replicas import Orchestration, orchestration


def sfumato(*words: str, said: str = "") -> str:
    """A command's output. Raises what the command raises."""
    result = CliRunner().invoke(app, list(words), input=said, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def spec_in(folder: Path, **sections: str) -> str:
    folder.mkdir(exist_ok=True)
    write_spec(folder, **sections)
    return str(folder / "spec.yaml")


def test_a_run_elsewhere_is_submitted_watched_and_fetched_as_if_it_were_here(tmp_path: Path) -> None:
    spec, runs = spec_in(tmp_path / "spec"), ("--runs", str(tmp_path / "runs"))
    with orchestration(tmp_path / "system") as system:
        first, second = system.replica(), system.replica()
        both = ("--server", f"{first.address},{second.address}")
        line = [sys.executable, "-m", "sfumato.cli.main", "run", spec, *both, *runs]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "200"}

        # Ctrl-C ends the watching, and the run continues: here without workers, so that it cannot finish.
        watching = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        system.until(lambda: _states(both) == ["running"], "the run is not driven")
        (name,) = [run["id"] for run in json.loads(sfumato("runs", "ls", "--json", *both))]
        watching.send_signal(signal.SIGINT)
        told = watching.communicate(timeout=60)[1]
        assert watching.returncode == 130 and f"sfumato runs watch {name}" in told and f"sfumato runs cancel {name}" in told

        assert sfumato("runs", "pause", name, *both).startswith(f"{name} paus")
        system.until(lambda: _states(both) == ["paused"], "it does not pause")
        with pytest.raises(SfumatoError, match="is paused"):
            sfumato("runs", "watch", name, *both, *runs)
        assert json.loads(sfumato("runs", "resume", name, "--json", *both))["state"] in ("queued", "running")

        # The replica that answers is killed, and with it perhaps the driver; the watching continues with the other one.
        watching = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        assert watching.stderr is not None and name in watching.stderr.readline()
        first.kill()
        system.work()
        printed, told = watching.communicate(timeout=120)
        assert watching.returncode == 0, told
        assert "iteration 3  score_heldout" in told and "max_iterations" in told
        folder = tmp_path / "runs" / name
        assert printed.strip() == str(folder / "report.html")
        _same_as_here(system, name, folder, tmp_path)
        shown = json.loads(sfumato("runs", "show", name, "--json", "--files", str(tmp_path / "files"), *both))
        assert shown["state"] == "finished" and shown["spec"]["name"] == "rehearsal"
        assert {path.name for path in (tmp_path / "files").iterdir()} == set(shown["outcome"]["files"])
        assert name in sfumato("runs", "ls", *both) and "max_iterations" in sfumato("runs", "show", name, *both)
        lines = [json.loads(line) for line in sfumato("runs", "watch", name, "--json", *both).splitlines()]
        assert lines[-1]["run"]["state"] == "finished" and any(line.get("event", {}).get("outcome") for line in lines)
        events = [line["event"] for line in lines if "event" in line]
        assert {(event["phase"], event["iteration"]) for event in events} >= {("iteration", 1), ("iteration", 2), ("iteration", 3)}
        assert any(len(event["shown"]) == 2 for event in events)
        with pytest.raises(WrongState, match="is finished"):
            sfumato("runs", "cancel", name, *both)


def _same_as_here(system: Orchestration, name: str, folder: Path, scratch: Path) -> None:
    """Hold a run's files against those of the same plan, done in this process; the report says which libraries, and they differ."""
    plan = Records(system.system.artifacts).record(name)[0].plan()
    from sfumato.runtime.artifacts import ArtifactStore

    artifacts = ArtifactStore(str(scratch / "here"))
    files = RECIPE.files(plan, rehearse(plan, artifacts)[0], artifacts)
    assert set(files) == {path.name for path in folder.iterdir()} - {"first-pair.png", "latest-pair.png"}
    for file, data in files.items():
        if not file.startswith("report"):
            assert (folder / file).read_bytes() == data, file


def _states(both: tuple[str, str]) -> list[str]:
    try:
        return [run["state"] for run in json.loads(sfumato("runs", "ls", "--json", *both))]
    except Unavailable:
        return []


def test_a_person_reviews_a_remote_run_and_faults_are_reported_together(tmp_path: Path) -> None:
    asked = spec_in(tmp_path / "asked", filter="{review: human}", stop="{max_iterations: 1, min_pairs: 1}")
    wrong = spec_in(tmp_path / "wrong", model="./here")
    text = Path(wrong).read_text().replace("batch: 4", "batch: 0").replace("train.txt, count: 10", "train.txt, count: 11")
    Path(wrong).write_text(text)
    with orchestration(tmp_path / "system") as system:
        replica = system.replica()
        system.work()
        there = ("--server", replica.address, "--runs", str(tmp_path / "runs"))
        with pytest.raises(Faults) as faults:
            sfumato("run", wrong, *there)
        assert {field for field, _ in faults.value.faults} == {"spec.batch", "spec.model", "inputs.train"}
        with pytest.raises(SfumatoError, match="10 questions wait for a person") as waits:
            sfumato("run", asked, *there)
        (name,) = re.findall(r"sfumato review (\S+)", waits.value.hint)
        questions: list[dict[str, Any]] = json.loads(sfumato("review", name, "--json", *there))
        assert len(questions) == 10 and questions[0]["pictures"][0]["regions"][0]["bbox"] == [0, 0, 16, 8]
        assert "waiting (10 questions)" in sfumato("runs", "show", name, *there)
        said = sfumato("review", name, "--reject", questions[0]["id"][:12], "--reason", "two moons", *there)
        assert "9 questions still wait" in said
        said = sfumato("review", name, *there, said="y\n" * 9)
        assert "1 of 9" in said and f"sfumato runs watch {name}" in said
        report = Path(sfumato("runs", "watch", name, *there).strip())
        figures = json.loads((report.parent / "report.json").read_text())
        assert figures["iterations"][0]["kept"] == 9
        assert json.loads(sfumato("run", asked, "--json", *there))["id"] == name
        with pytest.raises(NotFound, match="There is no run"):
            sfumato("runs", "show", "nobody-0123456789", *there)
    with pytest.raises(Unavailable, match="No orchestrator is named"):
        sfumato("runs", "ls", "--runs", str(tmp_path))
