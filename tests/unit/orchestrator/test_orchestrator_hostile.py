"""Thousands of hostile requests to a real replica on a real bus: each is answered, or refused by a field that it has."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from orchestrator.app import NAME
from orchestrator.control import RunService
from orchestrator.replica.driver import DriverSettings
from orchestrator.servicer import OrchestratorServicer
from sfumato.runtime.bus.nats_server import NatsServer
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service
from sfumato.runtime.settings import BusSettings, ServingSettings, Settings
from sfumato.v1 import orchestrator_pb2 as contract
from sfumato.v1.orchestrator_pb2_grpc import OrchestratorServiceStub, add_OrchestratorServiceServicer_to_server
from tests.unit.orchestrator.replicas import request
from tests.unit.services.serving import served, told
from tests.unit.services.test_servicers_hostile import ALLOWED, LEAKS, has, spoil

REQUESTS = 5200
SECONDS = 60.0
LINES = [
    "batch: 0", "batch: [1, 2]", "batch: 99999999999999999999", "colour: blue", "model: ../../etc/passwd", "model: [x]", "name: '../x'",
    "ground: {model: nobody/knows}", "score: {metrics: [clip]}", "score: {models: {clip: /tmp}}", "fuse: {alpha: [1, 2]}", "fuse: 7",
    "prompts: {count: 3, seed: 1, file: /etc/passwd}", "prompts: null", "evaluate: {count: -1, seed: x}", "filter: {review: everybody}",
    "stop: {max_iterations: 1e9}", "train: {rank: .nan}", "memory_gb: .inf", "a: &a [*a]", "? [x]", "\t", "%YAML 9.9",
    "!!python/object:os.x {}",
    "tune: {count: 1, seed: 0}", "recipe: !!binary eA==", "0: 1", "~: 1", "batch: 2020-01-01", "[" * 50, "{" * 3000, "'", "\ud7ff", "\0",
]  # fmt: skip


def spoiled(rng: random.Random, valid: contract.SubmitRequest) -> contract.SubmitRequest:
    """The submission with other lines in its spec, or other prompts."""
    asked = contract.SubmitRequest()
    asked.CopyFrom(valid)
    if rng.random() < 0.3:
        spoil(rng, asked, rng.choice([0.1, 0.5, 0.9]))
        return asked
    lines = asked.spec.splitlines()
    for _ in range(rng.randrange(1, 4)):
        lines.insert(rng.randrange(len(lines)), rng.choice(LINES))
    if rng.random() < 0.5:
        lines.pop(rng.randrange(len(lines)))
    asked.spec = "\n".join(lines)
    return asked


def ask(stub: OrchestratorServiceStub, call: str, asked: Message) -> None:
    """Call it; of a watch, which lasts as long as its run, return the first message."""
    if call != "Watch":
        getattr(stub, call)(asked, timeout=SECONDS)
        return
    watching: Any = stub.Watch(asked, timeout=SECONDS)
    next(watching)
    watching.cancel()


def named(call: str, field: str, asked: Message) -> bool:
    """Whether a refusal names a field: of the message, of the spec inside it, or a set of inputs."""
    return has(asked.DESCRIPTOR, field) or (call == "Submit" and (field == "spec" or field.startswith(("spec.", "inputs."))))


def test_hostile_requests_are_answered_or_refused_by_a_field_they_have(tmp_path: Path) -> None:
    rng, counts = random.Random("orchestrator"), Counter[str]()
    with NatsServer(tmp_path / "nats") as server:
        settings, bus = Settings(runs=tmp_path), BusSettings(url=server.url)

        def service(serving: ServingSettings) -> list[Service]:
            control = RunService(settings, bus, DriverSettings(runs=1), serving)
            register = partial(add_OrchestratorServiceServicer_to_server, OrchestratorServicer(control))
            return [Service(NAME, register, EngineQueue(object), beside=control)]

        with served(service) as channel:
            stub = OrchestratorServiceStub(channel)
            valid = request(filter="{review: human}")
            name = stub.Submit(valid).run.id
            calls: dict[str, tuple[int, Message]] = {
                "Submit": (4, valid),
                "Get": (4, contract.OrchestratorServiceGetRequest(run_id=name)),
                "List": (1, contract.OrchestratorServiceListRequest(page_size=2)),
                "Watch": (1, contract.OrchestratorServiceWatchRequest(run_id=name)),
                "Pause": (2, contract.PauseRequest(run_id=name)),
                "Resume": (2, contract.ResumeRequest(run_id=name)),
                "Cancel": (2, contract.CancelRequest(run_id=name)),
                "Review": (4, contract.ReviewRequest(run_id=name, answers=[contract.Answer(question_id="0" * 64, reason="no")])),
            }
            for _ in range(REQUESTS):
                call = rng.choices(list(calls), [weight for weight, _ in calls.values()])[0]
                asked = type(calls[call][1])()
                asked.CopyFrom(calls[call][1])
                if isinstance(asked, contract.SubmitRequest):
                    asked = spoiled(rng, asked)
                else:
                    spoil(rng, asked, rng.choice([0.2, 0.7]))
                try:
                    ask(stub, call, asked)
                    counts["OK"] += 1
                except grpc.RpcError as error:
                    code, _, fields = told(error)
                    words = str(error)
                    assert code.name in {*ALLOWED, "NOT_FOUND", "FAILED_PRECONDITION"} and not LEAKS.search(words), f"{words}\n{asked}"
                    assert code is not grpc.StatusCode.INVALID_ARGUMENT or fields, words
                    assert all(named(call, field, asked) for field in fields), f"{fields}\n{asked}"
                    counts[code.name] += 1
    assert counts["OK"] > 100 and counts["INVALID_ARGUMENT"] > 500 and counts["FAILED_PRECONDITION"] > 50, counts
