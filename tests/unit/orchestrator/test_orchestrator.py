"""Runs over the orchestrator's own API: real replicas as processes, a real bus, workers whose answers are made up."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from orchestrator.runs.records import Record, Records, Weights
from sfumato.v1 import orchestrator_pb2 as contract
from tests.unit.orchestrator.replicas import HANDLERS, SERVICES, Orchestration, Replica, orchestration, request, state
from tests.unit.services.serving import told

UNKNOWN = "unknown-0123456789"


def submitted(replica: Replica, name: str = "rehearsal", **sections: str) -> str:
    return replica.stub.Submit(request(name, **sections)).run.id


def watched(replica: Replica, name: str) -> tuple[list[contract.Run], list[contract.Event]]:
    """All that is told of a run until it has ended."""
    told_: tuple[list[contract.Run], list[contract.Event]] = ([], [])
    for update in replica.stub.Watch(contract.OrchestratorServiceWatchRequest(run_id=name)):
        if update.HasField("run"):
            told_[0].append(update.run)
        else:
            told_[1].append(update.event)
    return told_


def refused(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return told(error.value)[0]


def finished_undisturbed(folder: Path, **sections: str) -> dict[str, str]:
    """The files of an undisturbed run."""
    with orchestration(folder) as system:
        replica = system.replica()
        system.work()
        return dict(system.becomes(replica.stub, submitted(replica, **sections), "finished").outcome.files)


def test_a_run_is_submitted_once_watched_by_anybody_and_ends_with_its_files(tmp_path: Path) -> None:
    with orchestration(tmp_path) as system:
        # A registry that does not answer does not block the run.
        first, second = system.replica(registry="127.0.0.1:1"), system.replica(registry="127.0.0.1:1")
        system.work()
        answer = first.stub.Submit(request())
        name = answer.run.id
        assert answer.created and name.startswith("rehearsal-")
        runs, events = watched(second, name)
        assert [state(run) for run in runs][-1] == "finished"
        assert runs[-1].outcome.stop_reason == "max_iterations"
        assert {"report.html", "report.json", "adapter.safetensors", "adapter-3.safetensors"} <= set(runs[-1].outcome.files)
        assert f"sfumato models register {name}" in system.system.log()
        assert all(system.system.artifacts.holds(digest) for digest in runs[-1].outcome.files.values())
        # The latest event of every stage is told always, in the order in which they happened.
        finished = [event for event in events if event.stage == "conclude" and event.outcome]
        assert [event.iteration for event in finished] == [1, 2, 3]
        assert all(event.outcome.startswith(f"iteration {event.iteration}: 10 of 10 kept") for event in finished)
        assert any(len(event.shown) == 2 and event.shown[0].regions for event in events)
        # Who comes late is told the same; the same spec again is the same run, and what is finished stays so.
        late = watched(first, name)[1]
        assert [event.outcome for event in late if event.outcome] == [event.outcome for event in finished]
        again = second.stub.Submit(request())
        assert (again.created, again.run.id, state(again.run)) == (False, name, "finished")
        for call in (second.stub.Pause, second.stub.Resume, second.stub.Cancel):
            asked = {second.stub.Pause: contract.PauseRequest, second.stub.Resume: contract.ResumeRequest}.get(call, contract.CancelRequest)
            assert refused(lambda call=call, asked=asked: call(asked(run_id=name))) is grpc.StatusCode.FAILED_PRECONDITION
        for stub in (first.stub, second.stub):
            assert refused(lambda stub=stub: stub.Resume(contract.ResumeRequest(run_id=UNKNOWN))) is grpc.StatusCode.NOT_FOUND
            watch = contract.OrchestratorServiceWatchRequest(run_id=UNKNOWN)
            assert refused(lambda stub=stub, watch=watch: list(stub.Watch(watch))) is grpc.StatusCode.NOT_FOUND
        assert not Records(system.system.artifacts).begin(name, Records(system.system.artifacts).record(name)[0])


def test_a_run_is_paused_resumed_cancelled_and_taken_up_again(tmp_path: Path) -> None:
    with orchestration(tmp_path) as system:
        replica = system.replica()
        stub, name = replica.stub, submitted(replica)
        system.becomes(stub, name, "running")
        for _ in range(2):
            stub.Pause(contract.PauseRequest(run_id=name))
        assert system.becomes(stub, name, "paused").driver == ""
        stub.Resume(contract.ResumeRequest(run_id=name))
        system.becomes(stub, name, "running")
        for _ in range(2):
            assert state(stub.Cancel(contract.CancelRequest(run_id=name)).run) == "cancelled"
        assert refused(lambda: stub.Pause(contract.PauseRequest(run_id=name))) is grpc.StatusCode.FAILED_PRECONDITION
        assert state(stub.Submit(request()).run) in ("queued", "running")
        system.work()
        system.becomes(stub, name, "finished")
        # The newest first, a page at a time.
        others = [submitted(replica, f"other-{k}") for k in range(3)]
        pages, token = list[str](), ""
        while not pages or token:
            page = stub.List(contract.OrchestratorServiceListRequest(page_size=2, page_token=token))
            pages, token = [*pages, *(run.id for run in page.runs)], page.next_page_token
        assert pages == [*reversed(others), name]


def test_what_is_wrong_with_a_spec_is_said_at_once_and_by_field(tmp_path: Path) -> None:
    with orchestration(tmp_path) as system:
        replica = system.replica()
        wrong = request(
            batch="0",
            model="./my-models/flux",
            ground="{model: unknown/model, backend: guess}",
            score="{metrics: [clip, aesthetic, hpsv2]}",
            prompts="{count: 11, seed: 0, file: /etc/passwd}",
            colour="blue",
        )
        (heldout,) = (found for found in wrong.inputs if found.name == "heldout")
        heldout.lines.append("train picture 3")
        heldout.lines[0] = heldout.lines[6]
        with pytest.raises(grpc.RpcError) as error:
            replica.stub.Submit(wrong)
        code, reason, fields = told(error.value)
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT")
        expected = {"batch", "colour", "model", "ground.model", "ground.backend", "score.models.hpsv2", "prompts.file"}
        assert set(fields) == {f"spec.{field}" for field in expected} | {"inputs.train", "inputs.heldout"}
        assert not replica.stub.List(contract.OrchestratorServiceListRequest()).runs
        # A run whose worker refuses its task has failed, in the worker's words, and can be taken up again.
        refusing = system.system.worker("generator", "tests.unit.orchestrator.refusing")
        for service in SERVICES[1:]:
            system.system.worker(service, HANDLERS)
        name = submitted(replica)
        failed = system.becomes(replica.stub, name, "failed")
        assert "is odd" in failed.outcome.error and "Make it even" in failed.outcome.hint and "resume" in failed.note
        refusing.kill()
        refusing.wait()
        system.system.worker("generator", HANDLERS)
        replica.stub.Resume(contract.ResumeRequest(run_id=name))
        system.becomes(replica.stub, name, "finished")


def test_another_replica_continues_after_one_was_killed_or_terminated(tmp_path: Path) -> None:
    undisturbed = finished_undisturbed(tmp_path / "one")
    with orchestration(tmp_path / "two") as system:
        replicas = [system.replica() for _ in range(3)]
        name = submitted(replicas[0])
        ends = list[contract.Run]()
        driven = list[str]()
        for how in (Replica.kill, Replica.end):
            driver = system.becomes(replicas[0].stub, name, "running").driver
            driven.append(driver)
            (gone,) = [replica for replica in replicas if driver.endswith(f"-{replica.process.pid}")]
            replicas.remove(gone)
            how(gone)
            another = replicas[0].stub
            system.until(lambda stub=another: _driver(stub, name) not in ("", *driven), "no replica took over the run")
        assert replicas[-1].process.poll() is None
        watching = threading.Thread(target=lambda: ends.extend(watched(replicas[0], name)[0][-1:]))
        watching.start()
        system.work()
        watching.join()
        assert state(ends[0]) == "finished" and dict(ends[0].outcome.files) == undisturbed
        assert gone.process.wait(20) == 0, system.system.log()


def _driver(stub: object, name: str) -> str:
    return stub.Get(contract.OrchestratorServiceGetRequest(run_id=name)).run.driver  # pyright: ignore[reportAttributeAccessIssue]


def _somewhere(system: Orchestration, replica: Replica, name: str) -> None:
    """Wait until a run has come as far as it can without scorers."""

    def there() -> bool:
        run = replica.stub.Get(contract.OrchestratorServiceGetRequest(run_id=name)).run
        return run.latest.stage == "regenerate" and run.latest.done == run.latest.total

    system.until(there, "the run does not come so far")


def test_a_bus_that_loses_everything_loses_no_run(tmp_path: Path) -> None:
    with orchestration(tmp_path) as system:
        replica, nats = system.replica(), system.system.server
        for service in ("generator", "grounding"):
            system.system.worker(service, HANDLERS)
        name = submitted(replica)
        _somewhere(system, replica, name)

        def wipe() -> None:
            nats.stop()
            shutil.rmtree(nats.store)
            nats.start()

        # The replica that drives a run restores its desired state on the bus.
        wipe()
        system.becomes(replica.stub, name, "running")
        # Without a driver, the run is still on record, and continues from its manifests when it is resumed.
        replica.kill()
        wipe()
        other = system.replica()
        assert state(system.becomes(other.stub, name, "interrupted")) == "interrupted"
        assert [run.id for run in other.stub.List(contract.OrchestratorServiceListRequest()).runs] == [name]
        for service in ("scoring", "trainer"):
            system.system.worker(service, HANDLERS)
        other.stub.Resume(contract.ResumeRequest(run_id=name))
        runs, events = watched(other, name)
        assert state(runs[-1]) == "finished"
        assert [event.reused for event in events if event.iteration == 1 and event.stage in ("generate", "ground", "regenerate")][-1] == 3


def test_a_person_answers_and_the_run_continues_automatically(tmp_path: Path) -> None:
    with orchestration(tmp_path) as system:
        replica = system.replica()
        system.work()
        stub, name = replica.stub, submitted(replica, filter="{review: human}", stop="{max_iterations: 1, min_pairs: 1}")
        assert system.becomes(stub, name, "waiting").waiting == 10
        questions = stub.Review(contract.ReviewRequest(run_id=name)).waiting
        before, after = questions[0].pictures
        assert len(questions) == 10 and before.regions[0].prompt == "a glowing sky" and after.scores["aesthetic"] > 4
        no = contract.Answer(question_id=questions[0].id, accepted=False, reason="two moons")
        answered = stub.Review(contract.ReviewRequest(run_id=name, answers=[no]))
        assert (list(answered.answers), len(answered.waiting)) == ([no], 9)
        # The first answer stands.
        yes = contract.Answer(question_id=questions[0].id, accepted=True)
        assert list(stub.Review(contract.ReviewRequest(run_id=name, answers=[yes])).answers) == [no]
        bogus = contract.ReviewRequest(run_id=name, answers=[contract.Answer(question_id="0" * 64)])
        assert refused(lambda: stub.Review(bogus)) is grpc.StatusCode.NOT_FOUND
        rest = [contract.Answer(question_id=question.id, accepted=True) for question in questions[1:]]
        assert not stub.Review(contract.ReviewRequest(run_id=name, answers=rest)).waiting
        _, events = watched(replica, name)
        assert next(event.outcome for event in events if event.outcome).startswith("iteration 1: 9 of 10 kept")
        other = submitted(replica, "unasked")
        assert refused(lambda: stub.Review(contract.ReviewRequest(run_id=other))) is grpc.StatusCode.FAILED_PRECONDITION


def test_a_run_whose_method_is_not_installed_is_listed_and_fails_with_a_reason(tmp_path: Path) -> None:
    with orchestration(tmp_path) as system:
        replica = system.replica()
        models = {"generator": Weights(version="1" * 64, reference="vista")}
        gone = Record(spec={"name": "gone", "recipe": "uninstalled"}, inputs={}, models=models)
        Records(system.system.artifacts).begin("gone-0123456789", gone)
        assert [run.id for run in replica.stub.List(contract.OrchestratorServiceListRequest()).runs] == ["gone-0123456789"]
        replica.stub.Resume(contract.ResumeRequest(run_id="gone-0123456789"))
        run = system.becomes(replica.stub, "gone-0123456789", "failed")
        assert "there is no method 'uninstalled'" in run.outcome.error
