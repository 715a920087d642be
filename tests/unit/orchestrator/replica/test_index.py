"""What replicas share on the bus, under several writers at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orchestrator.replica.index import DesiredState, Index
from sfumato.runtime.bus import Bus
from tests.unit.bus_system import System, running

NAME = "rehearsal-0123456789"


async def _among_writers(system: System, rounds: int) -> list[BaseException]:
    """Create and delete the desired state and the lease of one run from several connections at once; what was raised."""
    async with Bus(system.settings, "one") as one, Bus(system.settings, "other") as other:
        writers = [Index(bus, lease=10.0) for bus in (one, other) for _ in range(4)]

        async def write(index: Index) -> None:
            for _ in range(rounds):
                await index.change(NAME, lambda old: old or DesiredState(wanted="run"))
                revision = await index.take(NAME, "a replica")
                await index.change(NAME, lambda _: None)
                if revision is not None:
                    await index.release(NAME, revision)

        ended = await asyncio.gather(*(write(index) for index in writers), return_exceptions=True)
    return [error for error in ended if error is not None]


def test_states_that_are_created_and_deleted_at_once_are_no_error(tmp_path: Path) -> None:
    with running(tmp_path) as system:
        errors = asyncio.run(_among_writers(system, 40))
    assert errors == []
