"""A worker in a service's process: in the engine's thread, between calls, with the sender's context fields."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from sfumato.runtime import telemetry
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import CONSUMER, Bus, encoded, stream_of, task_subject
from sfumato.runtime.bus.nats_server import NatsServer
from sfumato.runtime.bus.worker import Worker
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Manifest, Output, Task, find


def _where(task: Task, _: ArtifactStore) -> Output:
    return Output([threading.current_thread().name, telemetry.outgoing().get("baggage", "")])


def _with_bus(folder: Path, what: Callable[[Bus], Awaitable[None]]) -> None:
    async def run(url: str) -> None:
        async with Bus(BusSettings(url=url, ack_wait=60.0, grace=5.0), "test") as bus:
            await bus.ensure("echo")
            await what(bus)

    with NatsServer(folder / "nats") as server:
        asyncio.run(run(server.url))


async def _submit(bus: Bus, item: int) -> Task:
    task = Task(stage="s", kind="echo.where", items=(item,), params={}, model="m", model_reference="")
    await (await bus.send(task_subject("echo", task.id), encoded(task), telemetry.outgoing()))
    return task


async def _done(task: Task, artifacts: ArtifactStore) -> Manifest:
    while (manifest := find(task, artifacts)) is None:
        await asyncio.sleep(0.01)
    return manifest


def test_tasks_run_in_the_engine_thread_with_the_senders_context_fields(tmp_path: Path) -> None:
    artifacts, release = ArtifactStore(str(tmp_path / "artifacts")), threading.Event()

    async def check(bus: Bus) -> None:
        queue, stop = EngineQueue(lambda: "engine"), asyncio.Event()
        await queue.open()
        working = asyncio.create_task(Worker(bus, "echo", {"echo.where": _where}, artifacts, call=queue.call_unbounded).run(stop))
        call = asyncio.create_task(queue.call(lambda engine, _: release.wait(30)))
        with telemetry.bound(run="run-1", stage="paint"):
            task = await _submit(bus, 1)
        while not (await bus.js.consumer_info(stream_of("echo"), CONSUMER)).num_ack_pending:
            await asyncio.sleep(0.01)
        assert find(task, artifacts) is None  # the call is at the engine
        release.set()
        assert await call
        thread, words = (await _done(task, artifacts)).values
        assert thread.startswith("engine_") and "run=run-1" in words and "stage=paint" in words
        stop.set()
        assert await working
        queue.end()

    _with_bus(tmp_path, check)


def test_tasks_that_a_closed_engine_queue_refuses_are_given_back_at_once(tmp_path: Path) -> None:
    artifacts = ArtifactStore(str(tmp_path / "artifacts"))

    async def check(bus: Bus) -> None:
        queue, stop = EngineQueue(lambda: "engine"), asyncio.Event()
        await queue.open()
        queue.close()  # as when the service is being ended
        working = asyncio.create_task(Worker(bus, "echo", {"echo.where": _where}, artifacts, call=queue.call_unbounded).run(stop))
        task = await _submit(bus, 1)
        await asyncio.sleep(0.3)
        stop.set()
        assert await working
        queue.end()
        ours = asyncio.Event()
        other = asyncio.create_task(Worker(bus, "echo", {"echo.where": _where}, artifacts).run(ours))
        assert (await _done(task, artifacts)).values[0] == "engine"
        ours.set()
        assert await other

    _with_bus(tmp_path, check)
