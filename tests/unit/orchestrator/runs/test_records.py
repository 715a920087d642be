"""The runs on record: begun once, ended once, listed by page; records of sfumato 0.1 are read as well."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.recipes.artaug import RECIPE
from orchestrator.runs.records import Record, Records, Weights
from sfumato.errors import InvalidInput, NotFound, WrongState
from sfumato.runs.records import DeadLettered, Outcome
from sfumato.runtime.artifacts import ArtifactStore
from tests.unit.orchestrator.rehearsal import plan_of, write_spec

RUN = "rehearsal-0123456789"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "runs" / "artifacts"))


@pytest.fixture
def record(tmp_path: Path) -> Record:
    plan = plan_of(write_spec(tmp_path))
    weights = {part: Weights(version=model.version, reference=model.reference) for part, model in plan.models.items()}
    inputs = {name: tuple(prompts) for name, prompts in plan.inputs.items()}
    return Record(spec=plan.spec.model_dump(mode="json"), inputs=inputs, models=weights)


def _version_1(record: Record, **more: object) -> bytes:
    """The same record as sfumato 0.1 wrote it: the inputs are called prompts, there is no recipe but ArtAug."""
    content = record.model_dump(mode="json", exclude={"inputs", "trace"}) | {"prompts": record.inputs} | more
    return json.dumps(content).encode()


def _local_run(folder: Path, name: str, data: bytes, written: float) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "run.json").write_bytes(data)
    os.utime(folder / name / "run.json", (written, written))


def test_a_record_is_written_once_and_gives_the_plan(store: ArtifactStore, record: Record) -> None:
    records = Records(store)
    assert records.begin(RUN, record)
    assert not records.begin(RUN, record.model_copy(update={"trace": {"traceparent": "00"}}))
    found, _ = records.record(RUN)
    assert (found, found.recipe, records.outcome(RUN)) == (record, RECIPE, None)
    assert found.plan().inputs["train"] == record.inputs["train"]
    assert found.plan().spec.model_dump(mode="json") == record.spec


@pytest.mark.parametrize("name", ["unknown-0123456789", "", ".", "..", "../runs", "a/b", "a\x00b", "A%20"])
def test_what_is_not_on_record_is_no_run_whatever_its_name(store: ArtifactStore, record: Record, tmp_path: Path, name: str) -> None:
    _local_run(tmp_path, "runs", _version_1(record, finished=True), 1.0)
    with pytest.raises(NotFound, match="There is no run"):
        Records(store, tmp_path / "runs").record(name)


def test_a_run_ends_once_but_a_failure_gives_way_to_a_finish(store: ArtifactStore, record: Record) -> None:
    records = Records(store)
    records.begin(RUN, record)
    failed, finished, cancelled = Outcome(state="failed", error="x"), Outcome(state="finished"), Outcome(state="cancelled")
    assert records.end(RUN, failed) == failed
    assert records.end(RUN, cancelled) == failed
    assert records.end(RUN, finished) == finished
    assert records.end(RUN, failed) == finished
    ended = records.outcome(RUN)
    assert ended is not None and ended.outcome == finished
    with pytest.raises(WrongState, match="is finished"):
        records.reopen(RUN)
    records.reopen(RUN, finished=True)
    assert records.outcome(RUN) is None
    records.end(RUN, cancelled)
    records.reopen(RUN)
    assert records.outcome(RUN) is None


def test_a_record_of_version_1_in_the_store_is_the_same_record(store: ArtifactStore, record: Record) -> None:
    store.write_key(f"runs/{RUN}/record.json", _version_1(record, trace={"traceparent": "00"}))
    records = Records(store)
    found, _ = records.record(RUN)
    assert found == record.model_copy(update={"trace": {"traceparent": "00"}})
    assert found.plan() == record.plan()
    assert records.page(10) == ([RUN], "")


def test_an_outcome_of_version_1_says_what_was_lost(store: ArtifactStore, record: Record) -> None:
    records = Records(store)
    records.begin(RUN, record)
    rows = [
        {"iteration": 1, "reason": "out of memory", "samples": 8, "pairs": 0},
        {"iteration": 2, "reason": "out of memory", "samples": 4, "pairs": 3},
        {"iteration": 0, "reason": "the worker died", "samples": 0, "pairs": 2},
    ]
    old = {"state": "finished", "stop_reason": "max_iterations", "error": "", "hint": "", "files": {"report.html": "0"}, "set_aside": rows}
    store.write_key(f"runs/{RUN}/outcome.json", json.dumps(old).encode())
    ended = records.outcome(RUN)
    assert ended is not None
    assert ended.outcome == Outcome(
        state="finished",
        stop_reason="max_iterations",
        files={"report.html": "0"},
        dead_lettered=(
            DeadLettered(phase="iteration", iteration=1, reason="out of memory", lost={"samples": 8}),
            DeadLettered(phase="iteration", iteration=2, reason="out of memory", lost={"samples": 4, "trainings": 3}),
            DeadLettered(phase="comparison", iteration=0, reason="the worker died", lost={"trainings": 2}),
        ),
    )


@pytest.mark.parametrize("finished", [True, False])
def test_a_local_run_of_version_1_is_read_in_its_folder(store: ArtifactStore, record: Record, tmp_path: Path, finished: bool) -> None:
    _local_run(tmp_path / "runs", RUN, _version_1(record, finished=finished), 1_700_000_000.0)
    records = Records(store, tmp_path / "runs")
    found, submitted = records.record(RUN)
    assert (found, submitted.timestamp()) == (record, 1_700_000_000.0)
    ended = records.outcome(RUN)
    assert (ended is not None and ended.outcome == Outcome(state="finished")) == finished
    assert Records(store).page(10) == ([], "")
    with pytest.raises(NotFound):
        Records(store).record(RUN)


def test_runs_of_the_store_and_of_version_1_are_listed_together_the_newest_first(
    store: ArtifactStore, record: Record, tmp_path: Path
) -> None:
    records = Records(store, tmp_path / "runs")
    for number in range(3):
        _local_run(tmp_path / "runs", f"old-{number}", _version_1(record, finished=True), 1_700_000_000.0 + number)
    for number in range(2):
        records.begin(f"new-{number}", record)
    pages, token = list[str](), ""
    while not pages or token:
        names, token = records.page(2, token)
        assert len(names) <= 2
        pages += names
    assert pages == ["new-1", "new-0", "old-2", "old-1", "old-0"]
    # One that continues in the store is listed once, as what it is now: the newest.
    records.begin("old-0", record)
    assert records.page(10)[0] == ["old-0", "new-1", "new-0", "old-2", "old-1"]


def test_a_spec_that_the_method_does_not_accept_any_more_is_refused_by_name(record: Record) -> None:
    other = record.model_copy(update={"spec": record.spec | {"batch": 0}})
    with pytest.raises(InvalidInput, match="the method artaug of this installation does not accept the recorded spec"):
        other.plan()
