"""Serving over gRPC: a tiny service of the contract on a real server, called through real channels."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
import structlog
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sfumato.errors import AnswerRejected, BrokenWeights, Busy, Conflict, InvalidInput, MissingWeights, NotFound, SfumatoError, Unavailable
from sfumato.runtime import telemetry
from sfumato.runtime.serving.engine_queue import Caller, CallerGone, EngineQueue
from sfumato.runtime.serving.server import Server, Service
from sfumato.runtime.serving.status import DETAILS
from sfumato.runtime.settings import ServingSettings
from sfumato.v1 import common_pb2, generator_pb2, generator_pb2_grpc, scoring_pb2, scoring_pb2_grpc
from tests.unit.runtime.certificates import Certificates, mounted

SCORING, GENERATOR = "sfumato.v1.ScoringService", "sfumato.v1.GeneratorService"
PICTURE = common_pb2.Image(data=b"any bytes")
REQUEST = scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem(image=PICTURE, prompt="a moon")])
PAINT = generator_pb2.GenerateStreamRequest(painting=generator_pb2.Painting(prompt="a moon", seeds=[1]))
SECONDS = 30.0
FLOOD = "a flood"
"""A prompt that is answered with 64 MiB of previews before anything else."""

M = TypeVar("M", bound=Message)
# The types of grpc know the stubs of synchronous channels only.
Health: Any = health_pb2_grpc.HealthStub
Reflection: Any = reflection_pb2_grpc.ServerReflectionStub


@dataclass
class Engine:
    """Answers a score with what the test has it do, in the engine's thread."""

    score: Callable[[Caller], float] = lambda caller: 1.0
    began: list[str] = field(default_factory=list)


class Scoring(scoring_pb2_grpc.ScoringServiceServicer):
    def __init__(self, queue: EngineQueue[Engine]) -> None:
        self.queue = queue

    async def Score(self, request: scoring_pb2.ScoreRequest, context: Any) -> scoring_pb2.ScoreResponse:
        def work(engine: Engine, caller: Caller) -> float:
            engine.began.append(request.items[0].prompt)
            return engine.score(caller)

        return scoring_pb2.ScoreResponse(scores=[scoring_pb2.Scores(values={"it": await self.queue.call(work)})])


class Generator(generator_pb2_grpc.GeneratorServiceServicer):
    """Paints nothing, in three steps."""

    def __init__(self, queue: EngineQueue[Engine]) -> None:
        self.queue = queue

    async def GenerateStream(self, request: generator_pb2.GenerateStreamRequest, context: Any) -> AsyncIterator[Any]:
        def work(engine: Engine, caller: Caller) -> generator_pb2.GenerateStreamResponse:
            for _ in range(64 if request.painting.prompt == FLOOD else 0):
                image = common_pb2.Image(data=bytes(2**20))
                caller.tell(generator_pb2.GenerateStreamResponse(preview=generator_pb2.Preview(image=image)))
            for done in (1, 2, 3):
                caller.check()
                caller.tell(generator_pb2.GenerateStreamResponse(progress=generator_pb2.StepProgress(done=done, total=3)))
            engine.score(caller)
            return generator_pb2.GenerateStreamResponse(pictures=generator_pb2.Pictures())

        async for event in self.queue.stream(work):
            yield event


@dataclass
class Running:
    engine: Engine
    server: Server
    port: int
    loading: asyncio.Task[None]

    def channel(self, credentials: grpc.ChannelCredentials | None = None, name: str = "localhost") -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=[("grpc.ssl_target_name_override", name)])


@asynccontextmanager
async def running(engine: Engine | None = None, load: Callable[[], object] = lambda: None, **settings: Any) -> AsyncIterator[Running]:
    """A server of both services, one queue each, its engines loading or loaded."""
    engine = engine or Engine()

    def loaded() -> Engine:
        load()
        return engine

    chosen = ServingSettings(**{"waiting": 4, "grace": 5.0} | settings)
    scoring, generator = (EngineQueue(loaded, waiting=chosen.waiting) for _ in range(2))
    add_scoring = scoring_pb2_grpc.add_ScoringServiceServicer_to_server
    add_generator = generator_pb2_grpc.add_GeneratorServiceServicer_to_server
    services = [
        Service(SCORING, partial(add_scoring, Scoring(scoring)), scoring),
        Service(GENERATOR, partial(add_generator, Generator(generator)), generator),
    ]
    server = Server(services, chosen)
    port = await server.start()
    loading = asyncio.create_task(server.load())
    try:
        yield Running(engine, server, port, loading)
    finally:
        await asyncio.wait([loading])
        await server.drain()


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def detail(error: grpc.aio.AioRpcError, kind: type[M]) -> M:
    """The detail of this kind of a refusal."""
    (data,) = (value for key, value in error.trailing_metadata() or () if key == DETAILS)
    status = Status.FromString(data if isinstance(data, bytes) else data.encode())
    assert status.code == error.code().value[0] and status.message == error.details()
    found = kind()
    assert any(part.Unpack(found) for part in status.details), status
    return found


def test_a_call_is_answered_and_reflection_is_on() -> None:
    async def test() -> None:
        async with running() as now, now.channel() as channel:
            await now.loading
            answer = await scoring_pb2_grpc.ScoringServiceStub(channel).Score(REQUEST, timeout=SECONDS)
            assert answer.scores[0].values["it"] == 1.0
            asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            async for told in Reflection(channel).ServerReflectionInfo(asked):
                names = {service.name for service in told.list_services_response.service}
                assert {SCORING, GENERATOR, "grpc.health.v1.Health"} <= names

    in_loop(test)


def test_health_is_reported_for_each_service_while_it_loads_serves_and_drains() -> None:
    async def test() -> None:
        may_load = threading.Event()
        async with running(load=may_load.wait) as now, now.channel() as channel:
            health, stub = Health(channel), scoring_pb2_grpc.ScoringServiceStub(channel)
            statuses = []

            async def watch() -> None:
                async for told in health.Watch(health_pb2.HealthCheckRequest(service=SCORING)):
                    statuses.append(told.status)
                    seen.set()

            seen = asyncio.Event()
            watching = asyncio.create_task(watch())
            await seen.wait()
            assert (await health.Check(health_pb2.HealthCheckRequest(service=GENERATOR))).status == 2
            error = await refused(stub.Score(REQUEST, timeout=SECONDS))
            assert error.code() is grpc.StatusCode.UNAVAILABLE and "still loading" in (error.details() or "")
            assert detail(error, RetryInfo).retry_delay.seconds == 1
            may_load.set()
            await now.loading
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
            seen.clear()
            await now.server.drain()
            await asyncio.wait([watching])
            assert statuses[0] == 2 and statuses[-1] == 2 and 1 in statuses
            assert watching.exception() is not None  # the server is gone

    in_loop(test)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (InvalidInput("items[0].prompt", "is too long.", hint="Shorten it."), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
        (NotFound("There is no such model."), grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        (Conflict("It moved."), grpc.StatusCode.ABORTED, "CONFLICT"),
        (MissingWeights("No weights.", hint="Fetch them."), grpc.StatusCode.FAILED_PRECONDITION, "MISSING_WEIGHTS"),
        (BrokenWeights("Damaged."), grpc.StatusCode.DATA_LOSS, "BROKEN_WEIGHTS"),
        (Unavailable("The VLM is not there."), grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
        (AnswerRejected("No list.", "secret words"), grpc.StatusCode.INTERNAL, "ANSWER_REJECTED"),
        (SfumatoError("é" * 5000), grpc.StatusCode.INTERNAL, "SFUMATO_ERROR"),
        (ZeroDivisionError("secret words"), grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
def test_errors_become_status_and_details_and_nothing_else_leaks(error: Exception, code: grpc.StatusCode, reason: str) -> None:
    def fail(caller: Caller) -> float:
        raise error

    async def test() -> None:
        async with running(Engine(fail)) as now, now.channel() as channel:
            await now.loading
            told = await refused(scoring_pb2_grpc.ScoringServiceStub(channel).Score(REQUEST, timeout=SECONDS))
            assert told.code() is code
            assert detail(told, ErrorInfo).reason == reason
            if isinstance(error, SfumatoError) and len(str(error)) < 1000:
                assert told.details() == str(error)
            if isinstance(error, InvalidInput):
                (violation,) = detail(told, BadRequest).field_violations
                assert (violation.field, violation.description) == ("items[0].prompt", "is too long. Shorten it.")
            everything = f"{told.details()} {told.trailing_metadata()}"
            assert "secret" not in everything and "Traceback" not in everything and "ZeroDivision" not in everything

    in_loop(test)


def test_a_request_that_breaks_rules_is_refused_with_each_field_and_reaches_no_engine() -> None:
    async def test() -> None:
        async with running() as now, now.channel() as channel:
            await now.loading
            wrong = scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem(prompt=" ")], metrics=["clip", "B A D"])
            error = await refused(scoring_pb2_grpc.ScoringServiceStub(channel).Score(wrong, timeout=SECONDS))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            fields = {violation.field for violation in detail(error, BadRequest).field_violations}
            assert fields == {"items[0].image", "items[0].prompt", "metrics[1]"}
            many = scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem()] * 64)
            error = await refused(scoring_pb2_grpc.ScoringServiceStub(channel).Score(many, timeout=SECONDS))
            assert len(detail(error, BadRequest).field_violations) == 8
            call = generator_pb2_grpc.GeneratorServiceStub(channel).GenerateStream(generator_pb2.GenerateStreamRequest())
            error = await refused(call.read())
            assert [violation.field for violation in detail(error, BadRequest).field_violations] == ["painting"]
            assert now.engine.began == []

    in_loop(test)


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x12\x02\xc3\x28"])
def test_bytes_that_are_no_message_are_an_invalid_argument(data: bytes) -> None:
    async def test() -> None:
        async with running() as now, now.channel() as channel:
            await now.loading
            error = await refused(channel.unary_unary(f"/{SCORING}/Score")(data, timeout=SECONDS))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "Error" not in (error.details() or "")

    in_loop(test)


def test_messages_over_the_limit_are_refused() -> None:
    async def test() -> None:
        async with running(max_message=2**20) as now, now.channel() as channel:
            await now.loading
            large = scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem(image=common_pb2.Image(data=bytes(2**20)), prompt="a")])
            error = await refused(scoring_pb2_grpc.ScoringServiceStub(channel).Score(large, timeout=SECONDS))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    in_loop(test)


def test_everything_but_health_requires_the_token() -> None:
    async def test() -> None:
        async with running(token="right") as now, now.channel() as channel:
            await now.loading
            score = scoring_pb2_grpc.ScoringServiceStub(channel).Score
            for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "right"),)):
                assert (await refused(score(REQUEST, metadata=metadata))).code() is grpc.StatusCode.UNAUTHENTICATED
            stream = generator_pb2_grpc.GeneratorServiceStub(channel).GenerateStream(PAINT)
            assert (await refused(stream.read())).code() is grpc.StatusCode.UNAUTHENTICATED
            asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            looked = Reflection(channel).ServerReflectionInfo(asked)
            assert (await refused(looked.read())).code() is grpc.StatusCode.UNAUTHENTICATED
            assert now.engine.began == []
            await score(REQUEST, metadata=(("authorization", "Bearer right"),))
            assert (await Health(channel).Check(health_pb2.HealthCheckRequest())).status == 1

    in_loop(test)


def test_tls_and_clients_certificates(tmp_path: Path) -> None:
    files = Certificates(tmp_path)

    async def test() -> None:
        tls: dict[str, Any] = {"tls_certificate": files.certificate("server"), "tls_key": files.key("server")}
        async with running(**tls) as now:
            await now.loading
            async with now.channel(grpc.ssl_channel_credentials(files.authority.read_bytes())) as channel:
                await scoring_pb2_grpc.ScoringServiceStub(channel).Score(REQUEST, timeout=SECONDS)
        async with running(**tls, tls_client_authority=files.authority) as now:
            await now.loading
            pair = files.key("client").read_bytes(), files.certificate("client").read_bytes()
            async with now.channel(grpc.ssl_channel_credentials(files.authority.read_bytes(), *pair)) as channel:
                await scoring_pb2_grpc.ScoringServiceStub(channel).Score(REQUEST, timeout=SECONDS)
            async with now.channel(grpc.ssl_channel_credentials(files.authority.read_bytes())) as channel:
                error = await refused(scoring_pb2_grpc.ScoringServiceStub(channel).Score(REQUEST, timeout=SECONDS))
                assert error.code() is grpc.StatusCode.UNAVAILABLE

    in_loop(test)


def test_renewed_certificates_are_served_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def served(now: Running, files: Certificates) -> bool:
        pair = files.key("client").read_bytes(), files.certificate("client").read_bytes()
        async with now.channel(grpc.ssl_channel_credentials(files.authority.read_bytes(), *pair)) as channel:
            try:
                await scoring_pb2_grpc.ScoringServiceStub(channel).Score(REQUEST, timeout=SECONDS)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                return False
            return True

    async def test() -> None:
        old, place = mounted(tmp_path, "old"), tmp_path / "mounted"
        tls: dict[str, Any] = {"tls_certificate": place / "server.pem", "tls_key": place / "server.key"}
        async with running(**tls, tls_client_authority=place / "authority.pem") as now:
            await now.loading
            assert await served(now, old)
            new = mounted(tmp_path, "new")
            assert await served(now, new) and not await served(now, old)  # the server's pair and whose clients it takes
            (place / "server.key").unlink()
            assert await served(now, new)
            assert [record.getMessage() for record in caplog.records if "renewed" in record.msg] == ["The certificate was renewed."]
            assert any("the one before goes on" in record.msg for record in caplog.records)
            assert await served(now, mounted(tmp_path, "newest"))

    with caplog.at_level("INFO"):
        in_loop(test)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"tls_key": Path("key.pem")}, "tls_certificate"),
        ({"tls_client_authority": Path("ca.pem")}, "tls_client_authority"),
        ({"tls_key": Path("none.pem"), "tls_certificate": Path("none.pem")}, "tls_key"),
    ],
)
def test_incomplete_tls_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    async def test() -> None:
        with pytest.raises(InvalidInput) as caught:
            await Server([], ServingSettings(**settings)).start()
        assert caught.value.field == field

    in_loop(test)


def test_a_port_that_is_taken_is_refused() -> None:
    async def test() -> None:
        async with running() as now:
            with pytest.raises(InvalidInput, match="cannot be listened on"):
                await Server([], ServingSettings(address=f"127.0.0.1:{now.port}")).start()

    in_loop(test)


@dataclass
class Gate:
    """An engine that is busy until it is released, or until its caller is gone."""

    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Event = field(default_factory=threading.Event)
    left: list[str] = field(default_factory=list)

    def __call__(self, caller: Caller) -> float:
        self.entered.release()
        while not self.go.wait(0.005):
            try:
                caller.check()
            except CallerGone:
                self.left.append("gone")
                raise
        self.left.append("done")
        return 1.0


def request(prompt: str) -> scoring_pb2.ScoreRequest:
    return scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem(image=PICTURE, prompt=prompt)])


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.acquire, timeout=SECONDS)


def test_the_queue_is_bounded_and_calls_run_one_at_a_time_in_order() -> None:
    async def test() -> None:
        gate = Gate()
        async with running(Engine(gate), waiting=2) as now, now.channel() as channel:
            await now.loading
            stub = scoring_pb2_grpc.ScoringServiceStub(channel)
            first = asyncio.ensure_future(stub.Score(request("first"), timeout=SECONDS))
            await entered(gate)
            later = [asyncio.ensure_future(stub.Score(request(name), timeout=SECONDS)) for name in ("a", "b", "c", "d")]
            done, _ = await asyncio.wait(later, return_when=asyncio.FIRST_EXCEPTION)
            while len(done) < 2:
                done, _ = await asyncio.wait(later, timeout=0.01)
            for call in done:
                error = await refused(call)
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert detail(error, ErrorInfo).reason == "BUSY"
            assert now.engine.began == ["first"]
            gate.go.set()
            await asyncio.gather(first, *(call for call in later if call not in done))
            assert len(now.engine.began) == 3 and gate.left == ["done"] * 3

    in_loop(test)


def test_unbounded_calls_keep_the_order_of_calls_and_ignore_their_limit() -> None:
    async def test() -> None:
        queue, order = EngineQueue(lambda: Engine(), waiting=0), []
        await queue.open()
        with telemetry.bound(task="t"):
            works = [lambda engine, caller, i=i: order.append((i, structlog.contextvars.get_contextvars())) for i in range(5)]
            jobs = [asyncio.create_task(queue.call_unbounded(work)) for work in works]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await queue.call(lambda engine, caller: None)
        await asyncio.gather(*jobs)
        await queue.call(lambda engine, caller: order.append((5, {})))
        assert order == [(i, {"task": "t"}) for i in range(5)] + [(5, {})] and not queue.busy
        queue.end()
        with pytest.raises(Unavailable):
            await queue.call_unbounded(lambda engine, caller: None)

    in_loop(test)


def test_work_whose_caller_is_gone_is_abandoned_or_not_started() -> None:
    async def test() -> None:
        gate = Gate()
        async with running(Engine(gate)) as now, now.channel() as channel:
            await now.loading
            stub = scoring_pb2_grpc.ScoringServiceStub(channel)
            first = asyncio.ensure_future(stub.Score(request("cancelled at work"), timeout=SECONDS))
            await entered(gate)
            late = await refused(stub.Score(request("its deadline passes in the line"), timeout=0.05))
            assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            first.cancel()
            last = asyncio.ensure_future(stub.Score(request("last"), timeout=SECONDS))
            await entered(gate)
            assert gate.left == ["gone"]
            gate.go.set()
            await last
            assert now.engine.began == ["cancelled at work", "last"]

    in_loop(test)


def test_a_stream_yields_its_updates_and_then_its_result() -> None:
    async def test() -> None:
        async with running() as now, now.channel() as channel:
            await now.loading
            events = [event async for event in generator_pb2_grpc.GeneratorServiceStub(channel).GenerateStream(PAINT, timeout=SECONDS)]
            assert [event.progress.done for event in events[:-1]] == [1, 2, 3]
            assert events[-1].WhichOneof("event") == "pictures"

    in_loop(test)


def test_a_stream_that_is_not_read_to_its_end_logs_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        carried = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("baggage", "run=r1"))
        counted = telemetry.requests.labels(f"{GENERATOR}/GenerateStream", "CANCELLED")._value
        async with running() as now, now.channel() as channel:
            await now.loading
            before = counted.get()
            # More than fits into what is on its way: the service is at writing when its caller leaves.
            many = generator_pb2.GenerateStreamRequest(painting=generator_pb2.Painting(prompt=FLOOD, seeds=[1]))
            call = generator_pb2_grpc.GeneratorServiceStub(channel).GenerateStream(many, timeout=SECONDS, metadata=carried)
            assert (await call.read()).HasField("preview")
            await asyncio.sleep(0.2)
            call.cancel()
            while counted.get() == before:
                await asyncio.sleep(0.01)
            gc.collect()
            await asyncio.sleep(0.1)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]

    in_loop(test)


def test_draining_lets_open_calls_end_and_accepts_no_more() -> None:
    async def test() -> None:
        gate = Gate()
        async with running(Engine(gate)) as now, now.channel() as channel:
            await now.loading
            stub = scoring_pb2_grpc.ScoringServiceStub(channel)
            first = asyncio.ensure_future(stub.Score(request("first"), timeout=SECONDS))
            await entered(gate)
            draining = asyncio.create_task(now.server.drain())
            await asyncio.sleep(0.05)
            assert (await refused(stub.Score(request("too late"), timeout=SECONDS))).code() is grpc.StatusCode.UNAVAILABLE
            gate.go.set()
            assert (await first).scores[0].values["it"] == 1.0
            await draining

    in_loop(test)


def test_calls_that_exceed_the_grace_are_cancelled() -> None:
    async def test() -> None:
        gate = Gate()
        async with running(Engine(gate), grace=0.05) as now, now.channel() as channel:
            await now.loading
            first = asyncio.ensure_future(scoring_pb2_grpc.ScoringServiceStub(channel).Score(request("first"), timeout=SECONDS))
            await entered(gate)
            await now.server.drain()
            assert (await refused(first)).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            while not gate.left:
                await asyncio.sleep(0.01)
            assert gate.left == ["gone"]

    in_loop(test)
