"""Collects dead letters of tasks that end their workers: JetStream only says that a task was given out too often; what it was, and
why it failed if it ever lived to fail, is kept here. (A task that fails is set aside by the worker that saw it fail once too often.)
"""

from __future__ import annotations

import asyncio
import json
import logging

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import ADVISORIES, COLLECTOR, Bus, DeadLetter, Result
from sfumato.runtime.bus.puller import Puller
from sfumato.runtime.failures import Failure
from sfumato.runtime.tasks import manifest_key

log = logging.getLogger(__name__)

PAUSE = 0.5
SILENT = Failure(kind="WorkerLost", message="Its workers ended while they were at it, and none lived to say why.", hint="Out of memory?")


class DeadLetters:
    """Takes advisories from their queue; of several collectors, each advisory is one's. Any step may be the last, and is done again."""

    def __init__(self, bus: Bus, artifacts: ArtifactStore) -> None:
        self._bus, self._artifacts = bus, artifacts

    async def run(self) -> None:
        """Collect until cancelled."""
        puller = Puller(self._bus, ADVISORIES, COLLECTOR)
        await puller.open()
        while True:
            try:
                for advisory in await puller.take(1):
                    await self._collect(advisory)
            except NatsError as error:
                log.debug("dead letters cannot be had now: %s", error)
                await asyncio.sleep(PAUSE)
            except Exception as error:  # whatever a store may raise; the advisory comes again
                log.warning("a dead letter cannot be collected now: %s", error)
                await asyncio.sleep(PAUSE)

    async def _collect(self, advisory: Msg) -> None:
        told = json.loads(advisory.data)
        stream, sequence = told["stream"], told["stream_seq"]
        try:
            message = await self._bus.js.get_msg(stream, sequence)
        except NotFoundError:
            return await advisory.ack()  # it was collected before
        _, _, service, task_id = (message.subject or "").split(".")
        if await asyncio.to_thread(self._artifacts.read_key, manifest_key(task_id)) is not None:
            # It was done, and whoever did it had no time to say so.
            await self._bus.announce([Result(task_id=task_id, service=service)])
        else:
            last = await self._bus.last_attempt(service, task_id)
            if last is not None and last.sequence != sequence:
                last = None  # it was in the queue before this, and that is another story
            letter = DeadLetter(
                task_id=task_id,
                service=service,
                deliveries=told["deliveries"],
                failures=0 if last is None else last.failures,
                failure=SILENT if last is None else last.failure,
                task=(message.data or b"").decode(errors="replace"),
            )
            await self._bus.set_aside(letter)
        await self._bus.js.delete_msg(stream, sequence)
        await advisory.ack()
