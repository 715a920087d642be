"""A service's process on a real bus: one engine for calls and tasks, told of by traces, metrics and health, drained in time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nats.aio.msg import Msg

from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import CONSUMER, Bus, stream_of
from sfumato.runtime.bus.nats_server import NatsServer
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Manifest
from sfumato.v1 import common_pb2, generator_pb2, generator_pb2_grpc
from sfumato.vista import weights
from tests.integration.collector import Collector, collecting
from tests.integration.programs import ROOT, SECONDS, Program, program
from tests.integration.submitting import PROMPT, paint

SERVER_SPAN, PRODUCER_SPAN, CONSUMER_SPAN = 2, 4, 5
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING


@dataclass
class Generating:
    """A generator on a bus, and what collects its spans."""

    program: Program
    channel: grpc.Channel
    nats: NatsServer
    collector: Collector
    artifacts: Path

    def environment(self) -> dict[str, str]:
        """What a process must know to belong to it."""
        return {"SFUMATO_BUS_URL": self.nats.url, "SFUMATO_TELEMETRY_OTLP": self.collector.url, "SFUMATO_ARTIFACTS": str(self.artifacts)}

    def metrics(self) -> str:
        (port,) = (line.rpartition("port ")[2].split(".")[0] for line in self.program.log if "Metrics on port" in line)
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()

    def wait_for(self, metric: str) -> None:
        deadline = time.monotonic() + SECONDS
        while metric not in self.metrics():
            assert time.monotonic() < deadline, self.metrics()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def generating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generating]:
    tmp_path = tmp_path_factory.mktemp("generating")
    with NatsServer(tmp_path / "nats") as nats, collecting() as collector:
        given = {"SFUMATO_BUS_URL": nats.url, "SFUMATO_TELEMETRY_OTLP": collector.url, "SFUMATO_METRICS_ADDRESS": "127.0.0.1:0"}
        quick = {"SFUMATO_GRPC_GRACE": "1", "SFUMATO_BUS_GRACE": "1", "SFUMATO_GRPC_TOKEN": ""}
        with program("generator", tmp_path / "artifacts", **given, **quick) as (running, channel):
            yield Generating(running, channel, nats, collector, tmp_path / "artifacts")


def test_a_call_and_a_task_are_done_on_one_engine_and_both_are_told_of(generating: Generating) -> None:
    model = model_version(weights.locate("generator"))
    line = [sys.executable, "-m", "tests.integration.submitting", model, "7"]
    environment = os.environ | generating.environment() | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, env=environment, cwd=ROOT, stdout=subprocess.PIPE) as submitting:
        try:
            picture = _painted(generating.channel)
            told, _ = submitting.communicate(timeout=SECONDS)
        finally:
            submitting.kill()
    assert submitting.returncode == 0
    manifest = Manifest.model_validate_json(told)
    assert manifest.files["0.png"] == picture.image.artifact  # the same bytes, whichever way

    _the_sample_is_followed_from_the_run_to_its_files(generating.collector, manifest)
    call = generating.collector.wait(lambda span: span.kind == SERVER_SPAN and span.name.endswith("/Generate"))
    assert (call.trace, call.parent) == (PARENT[3:35], PARENT[36:52]) and call.attributes["sfumato.run"] == "r2"
    metrics = generating.metrics()
    for expected in (
        'sfumato_requests_total{code="OK",method="sfumato.v1.GeneratorService/Generate"} 1.0',
        'sfumato_tasks_total{kind="generator.paint",outcome="done"} 1.0',
        'sfumato_samples_total{kind="generator.paint"} 1.0',
        "sfumato_lane_waiting 0.0",
    ):
        assert expected in metrics


def _painted(channel: grpc.Channel) -> generator_pb2.Picture:
    """The same picture by a call, in a trace of its own."""
    painting = generator_pb2.Painting(prompt=PROMPT, seeds=[7], steps=2)
    asked = generator_pb2.GenerateRequest(painting=painting, delivery=common_pb2.DELIVERY_ARTIFACT)
    generate = generator_pb2_grpc.GeneratorServiceStub(channel).Generate
    return generate(asked, timeout=SECONDS, metadata=(("traceparent", PARENT), ("baggage", "run=r2"))).pictures[0]


def _the_sample_is_followed_from_the_run_to_its_files(collector: Collector, manifest: Manifest) -> None:
    """run -> submit (producer) -> paint (consumer, in the service) -> artifacts."""
    written = collector.wait(lambda span: span.name == "artifacts")
    assert {name: event["sha256"] for name, event in written.events.items()} == manifest.files
    worked = collector.wait(lambda span: span.id == written.parent)
    assert (worked.service, worked.name, worked.kind) == ("sfumato-generator", "generator.paint", CONSUMER_SPAN)
    words = {"sfumato.run": "r1", "sfumato.iteration": "1", "sfumato.stage": "first", "sfumato.task": manifest.task_id}
    assert words.items() <= worked.attributes.items()
    submitted = collector.wait(lambda span: span.id == worked.parent)
    assert (submitted.service, submitted.kind) == ("sfumato-orchestrator", PRODUCER_SPAN)
    run = collector.wait(lambda span: span.id == submitted.parent)
    assert run.name == "a run" and run.parent == "" and {run.trace} == {submitted.trace, worked.trace, written.trace}


def test_told_to_end_it_gives_back_the_task_it_is_at_within_the_grace(generating: Generating) -> None:
    def watch() -> None:
        health: Any = health_pb2_grpc.HealthStub(generating.channel)
        with pytest.raises(grpc.RpcError):  # in the end it is gone
            for answer in health.Watch(health_pb2.HealthCheckRequest()):
                healths.append(answer.status)

    healths: list[int] = []
    watching = threading.Thread(target=watch)
    watching.start()
    settings, task = BusSettings(url=generating.nats.url), paint(model_version(weights.locate("generator")), list(range(64)), steps=100)
    with JetStreamTransport(settings, ArtifactStore(str(generating.artifacts))) as transport:
        transport.submit(task)
        generating.wait_for("sfumato_lane_in_work 1.0")
        generate = generator_pb2_grpc.GeneratorServiceStub(generating.channel).Generate
        waiting = generate.future(generator_pb2.GenerateRequest(painting=generator_pb2.Painting(prompt=PROMPT, seeds=[7])), timeout=SECONDS)
        generating.wait_for("sfumato_lane_waiting 1.0")
        assert generating.program.end(signal.SIGTERM) == 1  # its engine did not let go within the second it has
    assert isinstance(waiting.exception(), grpc.RpcError)
    watching.join()
    assert healths[0] == SERVING and healths[-1] == NOT_SERVING
    # Long before the task would be given to another by itself (30 s), it is there for the next one who asks.
    message = asyncio.run(_next(settings))
    assert message.subject.endswith(task.id) and message.metadata.num_delivered == 2


async def _next(settings: BusSettings) -> Msg:
    """The next task that a generator would be given, at once."""
    async with Bus(settings, "the next generator") as bus:
        subscription = await bus.js.pull_subscribe_bind(CONSUMER, stream_of("generator"))
        (message,) = await subscription.fetch(1, timeout=5)
        return message
