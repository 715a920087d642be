"""The client of runs against real servers of the contract that are started, stopped and started again."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sfumato.errors import Faults, InvalidInput, NotFound, Unavailable, WrongState
from sfumato.runs import messages
from sfumato.runs.client import RunClient
from sfumato.runs.records import Answer, Ended, Event, Outcome, Question, RunState, RunStatus, ShownPicture
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.processes import free_ports
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service
from sfumato.runtime.settings import ServingSettings
from sfumato.types import Region
from sfumato.v1 import orchestrator_pb2 as pb
from sfumato.v1.orchestrator_pb2_grpc import OrchestratorServiceServicer, add_OrchestratorServiceServicer_to_server
from tests.unit.services.serving import served_at

NAME = "moon-0123456789"
SUBMITTED = datetime(2026, 11, 1, 12, tzinfo=UTC)
RUNNING = RunStatus(NAME, RunState.RUNNING, SUBMITTED, {"generator": "a" * 64}, driver="one", remaining=timedelta(seconds=90))
FINISHED = RunStatus(NAME, RunState.FINISHED, SUBMITTED, {}, ended=Ended(Outcome(state="finished", files={"a.txt": "b" * 64}), SUBMITTED))
PICTURES = (ShownPicture(caption="a moon", digest="1" * 64, regions=(Region("a halo", (0, 0, 8, 8)),), scores={"clip": 0.5}),)
QUESTIONS = [Question(digit * 64, "iteration", 1, "a moon", "moon", 7, PICTURES) for digit in "cd"]
EVENTS = [Event(number=n, time=n, phase="iteration", iteration=1, stage="paint", done=n, total=2, reused=0) for n in (1, 2)]


class Replica(OrchestratorServiceServicer):
    """A replica of the contract that knows one run; it tells of the run's end once ``over`` is set."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.watchers = 0
        self.inputs: dict[str, list[str]] = {}
        self.answers: dict[str, Answer] = {}

    async def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitResponse:
        created, self.inputs = not self.inputs, messages.inputs_from(request.inputs)
        if "train" not in self.inputs:
            raise Faults([("spec.batch", "is 0"), ("inputs.train", "is missing")])
        return pb.SubmitResponse(run=messages.status_to(RUNNING), created=created)

    async def Get(self, request: pb.OrchestratorServiceGetRequest, context: Any) -> pb.OrchestratorServiceGetResponse:
        return pb.OrchestratorServiceGetResponse(run=messages.status_to(self._known(request.run_id)), spec='{"name": "moon"}')

    async def List(self, request: pb.OrchestratorServiceListRequest, context: Any) -> pb.OrchestratorServiceListResponse:
        more = "" if request.page_token else f"1.{NAME}"
        return pb.OrchestratorServiceListResponse(runs=[messages.status_to(RUNNING)] * request.page_size, next_page_token=more)

    async def Watch(self, request: pb.OrchestratorServiceWatchRequest, context: Any) -> AsyncIterator[pb.OrchestratorServiceWatchResponse]:
        yield messages.update_to(self._known(request.run_id))
        self.watchers += 1
        try:
            for event in EVENTS:
                yield messages.update_to(event)
            while not self.over.is_set():
                await asyncio.sleep(0.01)
            yield messages.update_to(FINISHED)
        finally:
            self.watchers -= 1

    async def Pause(self, request: pb.PauseRequest, context: Any) -> pb.PauseResponse:
        return pb.PauseResponse(run=messages.status_to(self._known(request.run_id)))

    async def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeResponse:
        return pb.ResumeResponse(run=messages.status_to(self._known(request.run_id)))

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        raise WrongState(f"The run {request.run_id} is finished.")

    async def Review(self, request: pb.ReviewRequest, context: Any) -> pb.ReviewResponse:
        for answer in map(messages.answer_from, request.answers):
            self.answers.setdefault(answer.question_id, answer)
        stand = [messages.answer_to(self.answers[answer.question_id]) for answer in request.answers]
        waiting = [messages.question_to(question) for question in QUESTIONS if question.id not in self.answers]
        return pb.ReviewResponse(answers=stand, waiting=waiting)

    def _known(self, name: str) -> RunStatus:
        if name != NAME:
            raise NotFound(f"There is no run {name}.")
        return RUNNING


def serving(replica: Replica, store: ArtifactStore, address: str = "127.0.0.1:0") -> AbstractContextManager[str]:
    """The address of a server of the replica and the store."""

    def services(settings: ServingSettings) -> list[Service]:
        register = partial(add_OrchestratorServiceServicer_to_server, replica)
        return [Service("sfumato.v1.OrchestratorService", register, EngineQueue(object))]

    return served_at(services, store, address)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


@pytest.fixture
def replica() -> Replica:
    return Replica()


@pytest.fixture
def client(replica: Replica, store: ArtifactStore) -> Iterator[RunClient]:
    """A client of two addresses; nothing listens at the first."""
    with serving(replica, store) as address, RunClient([f"127.0.0.1:{free_ports([0])[0]}", address]) as client:
        yield client


def test_calls_are_answered_with_records_by_the_replica_that_is_there(client: RunClient, replica: Replica, store: ArtifactStore) -> None:
    assert client.submit("name: moon", {"train": ["a", "b"], "tune": []}) == (RUNNING, True)
    assert replica.inputs == {"train": ["a", "b"]}
    assert client.submit("name: moon", {"train": iter(["a"])}) == (RUNNING, False)
    status, spec = client.get(NAME)
    assert (status, json.loads(spec)) == (RUNNING, {"name": "moon"})
    found, token = client.page(2)
    assert (found, token) == ([RUNNING, RUNNING], f"1.{NAME}")
    assert client.page(1, token) == ([RUNNING], "")
    assert client.pause(NAME) == client.resume(NAME) == RUNNING
    assert client.fetch(store.put(b"a file")) == b"a file"


def test_refusals_are_errors_of_the_library(client: RunClient) -> None:
    with pytest.raises(Faults) as faults:
        client.submit("name: moon", {"heldout": ["a"]})
    assert [field for field, _ in faults.value.faults] == ["spec.batch", "inputs.train"]
    with pytest.raises(InvalidInput) as refused:
        client.submit("name: moon", {"Train Set": ["a"]})
    assert refused.value.field == "inputs[0].name"
    with pytest.raises(NotFound):
        client.get("other-0123456789")
    with pytest.raises(WrongState):
        client.cancel(NAME)
    with pytest.raises(NotFound):
        list(client.watch("other-0123456789"))
    with pytest.raises(NotFound):
        client.fetch("0" * 64)


def test_the_first_answer_to_a_question_stands(client: RunClient) -> None:
    assert client.review(NAME) == ([], QUESTIONS)
    first = Answer(QUESTIONS[0].id, False, "two moons")
    assert client.review(NAME, [first]) == ([first], QUESTIONS[1:])
    assert client.review(NAME, [Answer(first.question_id, True)]) == ([first], QUESTIONS[1:])


def test_without_any_replica_a_call_is_unavailable() -> None:
    with RunClient([f"127.0.0.1:{port}" for port in free_ports([0, 0])]) as client, pytest.raises(Unavailable):
        client.get(NAME)


def test_a_watch_that_is_left_early_is_cancelled_at_the_service(client: RunClient, replica: Replica) -> None:
    updates = client.watch(NAME)
    assert [next(updates) for _ in range(3)] == [RUNNING, *EVENTS]
    assert replica.watchers == 1
    updates.close()  # pyright: ignore[reportAttributeAccessIssue] (a generator)
    over = threading.Event()
    for _ in range(1000):
        if replica.watchers == 0:
            break
        over.wait(0.01)
    assert replica.watchers == 0


def test_a_watch_outlives_the_loss_of_its_replica(store: ArtifactStore) -> None:
    address = f"127.0.0.1:{free_ports([0])[0]}"
    before, after, lost = Replica(), Replica(), []
    with RunClient([address]) as client:
        updates = client.watch(NAME, lambda: lost.append(True))
        with serving(before, store, address):
            assert [next(updates) for _ in range(3)] == [RUNNING, *EVENTS]
        started = threading.Timer(0.5, after.over.set)  # the client meets a closed port first
        found: list[RunStatus | Event] = []

        def read() -> None:
            found.extend(updates)

        reader = threading.Thread(target=read)
        reader.start()
        while not lost:
            reader.join(0.01)
        with serving(after, store, address):
            started.start()
            reader.join(60)
        assert not reader.is_alive()
    assert found == [RUNNING, *EVENTS, FINISHED]
    assert lost == [True]


def test_a_watch_goes_on_with_another_replica(store: ArtifactStore) -> None:
    first, second, lost = Replica(), Replica(), []
    second.over.set()
    with serving(second, store) as other:
        with serving(first, store) as address:
            client = RunClient([address, other])
            updates = client.watch(NAME, lambda: lost.append(True))
            assert next(updates) == RUNNING
        assert list(updates)[-1] == FINISHED
        assert lost == [True]
        assert client.get(NAME)[0] == RUNNING
        client.close()
