"""Of three servers that keep every stream one is killed, then one is cut off: the run continues, and its work is done once."""

import asyncio
from pathlib import Path

import pytest

from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.runtime.bus import DEAD, Bus
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Task
from tests.chaos.cluster import three
from tests.unit.bus_system import QUICK, System

WORKERS = 2
FAULTS = 3
PART = 20
"""Tasks done between one fault and the next."""


def _task(item: int) -> Task:
    return Task(stage="s", kind="echo.slow", items=(item,), params={"seconds": 0.1}, model="m", model_reference="")


@pytest.mark.slow
def test_a_run_outlives_a_lost_server_and_one_that_is_cut_off(tmp_path: Path) -> None:
    with three(tmp_path) as cluster:
        # The run and one worker know the server that will be cut off, and hear of the others from it.
        first, _, last = cluster.servers
        system = System(tmp_path, last, BusSettings(**{"url": last.url, "replicas": 3, **QUICK}))  # pyright: ignore[reportArgumentType]
        with system.ending(), system.transport() as transport:
            system.worker()
            system.worker(url=first.url)
            results = _do(transport, 0)
            first.kill()
            results |= _do(transport, 1)
            first.start()
            results |= _do(transport, 2)
            cluster.cut()
            results |= _do(transport, 3)  # while it is cut off
            cluster.mend()
            results |= _do(transport, 4)
            assert asyncio.run(_set_aside(system)) == 0
        assert results == {item: 2 * item for item in range(5 * PART)}
        begun = [word for word in system.done() if word.startswith("begin")]
        # What a worker has in hand when it loses its server, and what it had no time to tell of.
        assert len(begun) <= 5 * PART + FAULTS * WORKERS * 2


async def _set_aside(system: System) -> int:
    async with Bus(system.settings, "test") as bus:
        return (await bus.js.stream_info(DEAD)).state.messages


def _do(transport: JetStreamTransport, part: int) -> dict[int, int]:
    """A part of the work; each task ends once."""
    for item in range(part * PART, (part + 1) * PART):
        transport.submit(_task(item))
    done = [transport.next() for _ in range(PART)]
    return {manifest.items[0]: manifest.values[0] for manifest in done}
