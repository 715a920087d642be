"""`sfumato runs ls|show --local`: the records in a folder, of this version and of version 0.1, without an orchestrator."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.runs.records import Record, Records, Weights
from sfumato.cli.main import app
from sfumato.errors import NotFound
from sfumato.runs.records import Outcome
from sfumato.runtime.artifacts import ArtifactStore
from tests.unit.orchestrator.rehearsal import plan_of, write_spec

LOCAL, BUS, NOW = "local-0123456789", "bus-0123456789", "now-0123456789"


def sfumato(*words: str) -> str:
    """A command's output. Raises what the command raises."""
    result = CliRunner().invoke(app, list(words), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A local run and an orchestrator's of version 0.1, and one of this version that did not end."""
    (tmp_path / "spec").mkdir()
    plan = plan_of(write_spec(tmp_path / "spec"))
    weights = {part: Weights(version=model.version, reference=model.reference) for part, model in plan.models.items()}
    inputs = {name: tuple(prompts) for name, prompts in plan.inputs.items()}
    record = Record(spec=plan.spec.model_dump(mode="json"), inputs=inputs, models=weights)
    old = record.model_dump(mode="json", exclude={"inputs", "trace"}) | {"prompts": inputs}
    folder, store = tmp_path / "runs", ArtifactStore(str(tmp_path / "runs" / "artifacts"))
    (folder / LOCAL).mkdir(parents=True)
    (folder / LOCAL / "run.json").write_text(json.dumps(old | {"finished": True}))
    os.utime(folder / LOCAL / "run.json", (1.0, 1.0))
    store.write_key(f"runs/{BUS}/record.json", json.dumps(old | {"trace": {}}).encode())
    lost = [{"iteration": 0, "reason": "it failed", "samples": 0, "pairs": 2}]
    outcome = {"state": "finished", "stop_reason": "max_iterations", "files": {"report.json": store.put(b"{}")}, "set_aside": lost}
    store.write_key(f"runs/{BUS}/outcome.json", json.dumps(outcome).encode())
    Records(store).begin(NOW, record)
    return folder


def test_runs_of_every_kind_are_listed_the_newest_first(runs: Path) -> None:
    found = json.loads(sfumato("runs", "ls", "--local", "--json", "--runs", str(runs)))
    assert {run["id"]: run["state"] for run in found} == {NOW: "interrupted", BUS: "finished", LOCAL: "finished"}
    assert found[-1]["id"] == LOCAL
    assert LOCAL in sfumato("runs", "ls", "--local", "--runs", str(runs))


def test_a_run_of_version_1_is_shown_with_its_files_and_what_it_lost(runs: Path, tmp_path: Path) -> None:
    told = sfumato("runs", "show", BUS, "--local", "--runs", str(runs), "--files", str(tmp_path / "files"))
    assert "2 trainings of comparison lost: it failed" in told and "max_iterations" in told
    assert (tmp_path / "files" / "report.json").read_bytes() == b"{}"
    assert json.loads(sfumato("runs", "show", LOCAL, "--local", "--json", "--runs", str(runs)))["spec"]["name"] == "rehearsal"


def test_a_run_that_ended_otherwise_says_how_it_continues(runs: Path) -> None:
    Records(ArtifactStore(str(runs / "artifacts"))).end(NOW, Outcome(state="failed", error="out of memory"))
    told = json.loads(sfumato("runs", "show", NOW, "--local", "--json", "--runs", str(runs)))
    assert (told["state"], told["outcome"]["error"]) == ("failed", "out of memory")
    assert told["note"].endswith(f"sfumato run --resume {NOW}")


def test_a_run_that_is_not_there_is_not_found(runs: Path) -> None:
    with pytest.raises(NotFound, match="There is no run"):
        sfumato("runs", "show", "other-0123456789", "--local", "--runs", str(runs))
