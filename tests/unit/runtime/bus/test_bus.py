"""Streams and consumers on a real server."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from nats.js.api import RetentionPolicy
from nats.js.errors import APIError

from sfumato.errors import InvalidInput
from sfumato.runtime.bus import ADVISORIES, CONSUMER, DEAD, EVENTS, LARGEST_TASK, Bus, encoded, present, stream_of, task_subject
from sfumato.runtime.bus.nats_server import NatsServer
from sfumato.runtime.bus.puller import Puller
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Task

SUBJECT = task_subject("echo", "1")


def _with_bus(folder: Path, what: Callable[[Bus], Awaitable[None]], **values: object) -> None:
    async def run(url: str) -> None:
        async with Bus(BusSettings(**{"url": url, **values}), "test") as bus:  # pyright: ignore[reportArgumentType]
            await bus.ensure("echo")
            await what(bus)

    with NatsServer(folder) as server:
        asyncio.run(run(server.url))


def test_a_service_has_a_bounded_work_queue(tmp_path: Path) -> None:
    async def check(bus: Bus) -> None:
        stream = (await bus.js.stream_info(stream_of("echo"))).config
        consumer = (await bus.js.consumer_info(stream_of("echo"), CONSUMER)).config
        assert stream.retention == RetentionPolicy.WORK_QUEUE
        assert (consumer.max_deliver, consumer.max_ack_pending, consumer.ack_wait, consumer.ack_policy) == (4, 77, 9.0, "explicit")
        for name in (EVENTS, DEAD, ADVISORIES):
            assert (await bus.js.stream_info(name)).config.num_replicas == 1

    _with_bus(tmp_path, check, deliveries=4, in_work=77, ack_wait=9.0)


def test_other_settings_update_the_streams(tmp_path: Path) -> None:
    async def check(bus: Bus) -> None:
        await Bus.ensure(bus, "echo")
        bus.settings = bus.settings.model_copy(update={"deliveries": 9})
        await bus.ensure("echo")
        assert (await bus.js.consumer_info(stream_of("echo"), CONSUMER)).config.max_deliver == 9

    _with_bus(tmp_path, check)


def test_a_task_is_in_the_queue_at_most_once_at_any_time(tmp_path: Path) -> None:
    async def check(bus: Bus) -> None:
        await (await bus.send(SUBJECT, b"x"))
        with pytest.raises(APIError) as refused:
            await (await bus.send(SUBJECT, b"x"))
        assert present(refused.value)
        assert (await bus.js.stream_info(stream_of("echo"))).state.messages == 1

    _with_bus(tmp_path, check)


def test_messages_are_available_when_they_arrive(tmp_path: Path) -> None:
    async def check(bus: Bus) -> None:
        puller = Puller(bus, stream_of("echo"), CONSUMER)
        await puller.open()
        for number in range(3):
            await (await bus.send(task_subject("echo", str(number)), b"x"))
            (message,) = await puller.take(10)  # not waiting for ten
            await message.ack()
        assert await puller.close() == []

    _with_bus(tmp_path, check)


def test_a_deleted_queue_is_an_error(tmp_path: Path) -> None:
    async def check(bus: Bus) -> None:
        puller = Puller(bus, stream_of("echo"), CONSUMER)
        await puller.open()
        await bus.js.delete_stream(stream_of("echo"))
        with pytest.raises(APIError):
            await puller.take(1)
        await puller.close()

    _with_bus(tmp_path, check)


def test_a_task_larger_than_a_message_is_refused_with_advice() -> None:
    task = Task(stage="paint", kind="echo.double", items=("x" * LARGEST_TASK,), params={}, model="m", model_reference="")
    with pytest.raises(InvalidInput, match="'paint'.*micro-batches smaller"):
        encoded(task)


@pytest.mark.parametrize("kind", ["a b.c", "*.x", ">.x", "Echo.x", "x" * 40 + ".y", ".y"])
def test_a_service_name_that_is_not_valid_in_subjects_is_refused(kind: str) -> None:
    with pytest.raises(InvalidInput, match="service"):
        encoded(Task(stage="s", kind=kind, items=(), params={}, model="m", model_reference=""))
