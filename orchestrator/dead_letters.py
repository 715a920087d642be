"""Collects dead letters: JetStream only says that a task was given out too often; what it was and why it failed is kept here."""

from __future__ import annotations

import asyncio
import json
import logging

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from sfumato.runtime import telemetry
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import (
    ADVISORIES,
    COLLECTOR,
    EVENTS,
    Bus,
    DeadLetter,
    Puller,
    Result,
    dead_subject,
    failure_subject,
)
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
            except (NatsError, TimeoutError) as error:
                log.debug("dead letters cannot be had now: %s", error)
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
            failure = await self._reason(service, task_id)
            text = (message.data or b"").decode(errors="replace")
            letter = DeadLetter(task_id=task_id, service=service, deliveries=told["deliveries"], failure=failure, task=text)
            telemetry.parked.labels(service).inc()
            log.warning("task %s of %s is set aside: %s", task_id, service, failure.message, extra={"task": task_id})
            await asyncio.wait_for(await self._bus.send(dead_subject(service, task_id), letter.model_dump_json().encode()), 5.0)
            await self._bus.announce([Result(task_id=task_id, service=service, failure=failure, dead=True)])
        await self._bus.js.delete_msg(stream, sequence)
        await advisory.ack()

    async def _reason(self, service: str, task_id: str) -> Failure:
        try:
            said = await self._bus.js.get_last_msg(EVENTS, failure_subject(service, task_id))
        except NotFoundError:
            return SILENT
        return Failure.model_validate_json(said.data or b"")
