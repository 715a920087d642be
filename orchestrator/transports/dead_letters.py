"""Collects dead letters of tasks whose workers ended: JetStream only publishes an advisory that a task reached its maximum of deliveries.
The collector stores the task and its last known failure. (A task that fails becomes a dead letter at the worker of its last attempt.)
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
SILENT = Failure(kind="WorkerLost", message="Its workers ended during the task without reporting an error.", hint="Out of memory?")


class DeadLetters:
    """Consumes advisories, each delivered to one of the collectors. A collector may end after any step: all steps are idempotent."""

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
                log.debug("advisories cannot be read now: %s", error)
                await asyncio.sleep(PAUSE)
            except Exception as error:  # a store may raise anything; the advisory is redelivered
                log.warning("a dead letter cannot be collected now: %s", error)
                await asyncio.sleep(PAUSE)

    async def _collect(self, advisory: Msg) -> None:
        fields = json.loads(advisory.data)
        stream, sequence = fields["stream"], fields["stream_seq"]
        try:
            message = await self._bus.js.get_msg(stream, sequence)
        except NotFoundError:
            return await advisory.ack()  # it was collected before
        _, _, service, task_id = (message.subject or "").split(".")
        if await asyncio.to_thread(self._artifacts.read_key, manifest_key(task_id)) is not None:
            # The task is done, but its worker ended before it announced the result.
            await self._bus.announce([Result(task_id=task_id, service=service)])
        else:
            last = await self._bus.last_attempt(service, task_id)
            if last is not None and last.sequence != sequence:
                last = None  # of an earlier message of the same task
            letter = DeadLetter(
                task_id=task_id,
                service=service,
                deliveries=fields["deliveries"],
                failures=0 if last is None else last.failures,
                failure=SILENT if last is None else last.failure,
                task=(message.data or b"").decode(errors="replace"),
            )
            await self._bus.set_aside(letter)
        await self._bus.js.delete_msg(stream, sequence)
        await advisory.ack()
