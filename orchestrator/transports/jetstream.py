"""Sends tasks to workers over JetStream: the same protocol as the local transport, for workers on any machine.

This process only holds the pending tasks in memory. Results are received as they are announced. Announcements that are missed, because a
server, a connection or a process was down, are recovered from the artifact store: a task with a manifest is done, and a task with neither
a manifest nor a message in the queue is published again.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js.errors import NotFoundError
from opentelemetry.trace import SpanKind

from orchestrator.transports.dead_letters import DeadLetters
from sfumato.errors import InvalidInput, PoisonTask, SfumatoError, Unavailable
from sfumato.runtime import telemetry
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import ADVISORIES, CONSUMER, Bus, Result, encoded, gone, present, result_subject, stream_of, task_subject
from sfumato.runtime.cancel import cancel_all
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Manifest, Task, find

log = logging.getLogger(__name__)

# Threads that read manifests: if the store is a bucket, each read is a round trip.
READERS = 8
RETRY = 0.3
"""Seconds until a failed publication is retried."""
STORE = "the artifact store"
MAX_BACKOFF = 12
"""The interval between two checks of a task doubles up to this multiple of the first one."""


@dataclass(order=True, slots=True)
class _PendingTask:
    """A task without a result, ordered by urgency, then by age."""

    order: tuple[int, int]
    task: Task = field(compare=False)
    data: bytes = field(compare=False)
    # The trace and the log context of the submitter.
    headers: dict[str, str] = field(compare=False)
    # When the task is checked next, and the interval to the check after it in seconds; 0: it is not published yet.
    due: float = field(default=0.0, compare=False)
    interval: float = field(default=0.0, compare=False)
    posted: asyncio.Future[dict[str, Any]] | None = field(default=None, compare=False)
    # The number of consecutive publications that found it in the queue.
    queued: int = field(default=0, compare=False)
    # Whether the last publication that was answered left it in the queue.
    held: bool = field(default=False, compare=False)


class JetStreamTransport:
    """A `orchestrator.engine.transport.Transport` for a synchronous engine; the bus lives in a thread. Use it in a ``with`` block.

    Several transports may wait for the same task: it is in the queue once, and all receive its result.
    """

    def __init__(self, settings: BusSettings, artifacts: ArtifactStore) -> None:
        self._settings, self._artifacts = settings, artifacts
        self._outcomes: SimpleQueue[Manifest | SfumatoError] = SimpleQueue()
        self._submitted: deque[_PendingTask] = deque()
        self._count = 0
        self._awake = False
        # The following attributes are only accessed by the event loop's thread.
        self._pending: dict[str, _PendingTask] = {}
        self._unsent: dict[str, list[_PendingTask]] = defaultdict(list)
        self._open: Counter[str] = Counter()
        self._services: set[str] = set()
        self._ready: set[str] = set()
        # What refuses for a reason that lasts, a service's queue or the store (for any reason): since when, and why.
        self._refusals: dict[str, tuple[float, SfumatoError]] = {}
        # Read by `next`: why the run cannot continue.
        self._lasting: SfumatoError | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="manifests")
        self._thread = threading.Thread(target=self._run_loop, name="bus", daemon=True)
        self._started: Future[None] = Future()

    def __enter__(self) -> JetStreamTransport:
        """Connect.

        Raises:
            Unavailable: the bus cannot be reached.
        """
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._readers.shutdown()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Disconnect. Tasks in the queue stay there: other transports may wait for them, and their results are kept."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._readers.shutdown()

    def prepare(self, services: Iterable[str]) -> None:
        """Create the work queues of these services; it does not start workers."""
        self._loop.call_soon_threadsafe(self._prepare, list(services))

    def submit(self, task: Task, urgency: int = 0) -> None:
        """Publish a task, or hold it back while its service has a full window on the bus; the most urgent is published first.

        Raises:
            InvalidInput: the task exceeds the maximum message size.
        """
        self._count += 1
        with telemetry.bound(stage=task.stage), telemetry.tracer.start_as_current_span(f"submit {task.kind}", kind=SpanKind.PRODUCER):
            headers = telemetry.outgoing()
        self._submitted.append(_PendingTask((-urgency, self._count), task, encoded(task, self._bus.largest_task), headers))
        if not self._awake:
            self._awake = True
            self._loop.call_soon_threadsafe(self._wake)

    def next(self) -> Manifest:
        """Wait for the result of any task.

        Raises:
            PoisonTask: a task failed at every try and became a dead letter.
            SfumatoError: a task failed, with the worker's message.
            Unavailable: the bus was unavailable for too long.
            Blocked: the bus or the store refused for too long, for a reason that lasts.
        """
        while True:
            try:
                outcome = self._outcomes.get(timeout=1.0)
            except Empty:
                self._check()
                continue
            if isinstance(outcome, SfumatoError):
                raise outcome
            return outcome

    def interrupt(self, error: SfumatoError) -> None:
        """Have `next` raise ``error``, after it has returned what came before; from any thread."""
        self._outcomes.put(error)

    def release(self, service: str) -> None:
        """Without effect: other runs use the same workers."""

    def _check(self) -> None:
        since = self._bus.away_since
        if since is not None and time.monotonic() - since > self._settings.patience:
            hint = "Finished work is kept: run the same command again when the bus is back."
            if self._bus.trouble is not None:
                raise self._bus.trouble
            raise Unavailable(f"The bus at {self._settings.url} has been unavailable for {self._settings.patience:.0f} s.", hint=hint)
        if self._lasting is not None:
            raise self._lasting
        if not self._thread.is_alive():
            raise Unavailable("The connection to the bus is closed.", hint="Run the same command again: finished work is kept.")

    # Everything below runs in the event loop's thread.

    def _run_loop(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            if self._started.done():
                log.exception("the thread of the bus failed")
                self._outcomes.put(error if isinstance(error, SfumatoError) else SfumatoError(f"The bus failed: {error!r}"))
            else:
                self._started.set_exception(error)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        async with Bus(self._settings, f"sfumato orchestrator {os.getpid()}") as self._bus:
            self._bus.on_return.append(self._check_all_now)
            await self._bus.client.subscribe(result_subject("*"), cb=self._on_result)
            # The subscription must be active before the first task is published.
            await self._bus.client.flush()
            self._started.set_result(None)
            loops = (self._pump(), self._check_overdue(), DeadLetters(self._bus, self._artifacts).run())
            jobs = [asyncio.create_task(loop) for loop in loops]
            stopping = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait([*jobs, stopping], return_when=asyncio.FIRST_COMPLETED)
                for job in jobs:
                    if job.done():
                        job.result()
            finally:
                await cancel_all([*jobs, stopping])

    def _wake(self) -> None:
        self._changed.set()

    def _prepare(self, services: list[str]) -> None:
        self._services.update(services)
        self._changed.set()

    async def _pump(self) -> None:
        """Queue the submitted tasks by service, and publish them as far as the window allows."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._awake = False
            while self._submitted:
                pending = self._submitted.popleft()
                if pending.task.id not in self._pending:
                    self._pending[pending.task.id] = pending
                    self._services.add(pending.task.service)
                    heapq.heappush(self._unsent[pending.task.service], pending)
            for service in self._services - self._ready:
                await self._ensure(service)
            for service, unsent in self._unsent.items():
                while unsent and self._open[service] < self._settings.window:
                    pending = heapq.heappop(unsent)
                    if pending.task.id in self._pending:  # otherwise it is done already
                        self._open[service] += 1
                        pending.interval = self._settings.look
                        await self._post(pending)

    async def _ensure(self, service: str) -> None:
        try:
            await self._bus.ensure(service)
            self._ready.add(service)
            self._refusals.pop(f"the queue of {service}", None)
        except (NatsError, TimeoutError) as error:
            if not self._refused(f"the queue of {service}", self._bus.refusal(error)):
                log.warning("the queue of %s cannot be created now: %s", service, error)

    def _refused(self, what: str, error: SfumatoError | None) -> bool:
        """Record that a service's queue, or the store, refuses; whether it does."""
        if error is None:
            return False
        since, before = self._refusals.get(what, (time.monotonic(), None))
        if before is None or before.message != error.message:
            log.warning("%s: %s", what, error)
        self._refusals[what] = since, error
        return True

    def _lasting_refusal(self) -> SfumatoError | None:
        """The refusal for which the run ends: it has lasted for the settings' patience, and no task is in that queue to make room."""
        now = time.monotonic()
        for what, (since, error) in self._refusals.items():
            in_queue = any(pending.held and pending.task.service == what for pending in self._pending.values())
            if now - since > self._settings.patience and not in_queue:
                return error
        return None

    async def _post(self, pending: _PendingTask) -> None:
        """Publish a task, if its queue is ready; it is checked when it is due, even if the message is lost."""
        pending.due = time.monotonic() + pending.interval
        if pending.posted is not None:
            pending.posted.cancel()
        if pending.task.service not in self._ready:
            pending.due = time.monotonic() + RETRY
            return
        try:
            subject = task_subject(pending.task.service, pending.task.id)
            pending.posted = await self._bus.send(subject, pending.data, pending.headers)
        except MaxPayloadError as error:  # another server of the cluster accepts less than the one before
            reason = f"a task of stage {pending.task.stage!r} has {len(pending.data)} bytes. {self._bus.explained(error)}"
            return self._settle(pending, InvalidInput("batch", reason, hint="Or make micro-batches smaller."))
        except NatsError:
            pending.due = time.monotonic() + RETRY
            return
        pending.posted.add_done_callback(lambda future: self._posted(pending, future))

    def _posted(self, pending: _PendingTask, future: asyncio.Future[dict[str, Any]]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        pending.held = error is None or present(error)
        if pending.held:
            self._refusals.pop(pending.task.service, None)
        if error is None:
            pending.queued = 0
        elif present(error):
            pending.queued += 1
        else:
            self._refused(pending.task.service, self._bus.refusal(error))
            if gone(error):
                self._ready.discard(pending.task.service)  # the streams are gone: the server lost its data
            pending.due = time.monotonic() + RETRY

    async def _on_result(self, message: Msg) -> None:
        try:
            result = Result.model_validate_json(message.data)
        except ValueError as error:
            log.warning("a result cannot be read: %s", error)
            return
        pending = self._pending.get(result.task_id)
        if pending is None:
            return
        if result.failure is None:
            self._readers.submit(self._read, pending, message.headers)
            return
        error = result.failure.error()
        if result.tries:
            words = f"A {result.service} task was set aside after {result.tries} tries: {error.message}"
            error = PoisonTask(result.task_id, words, hint=error.hint)
        self._settle(pending, error)

    def _read(self, pending: _PendingTask, headers: Mapping[str, str] | None) -> None:
        """In a reader's thread: fetch the manifest of a task that was announced as done; if it is missing, the periodic check finds it."""
        try:
            with telemetry.incoming(headers), telemetry.tracer.start_as_current_span(f"result {pending.task.kind}", kind=SpanKind.CONSUMER):
                manifest = find(pending.task, self._artifacts)
        except Exception as error:  # a store may raise anything: `next` raises it
            outcome = error if isinstance(error, SfumatoError) else Unavailable(f"The artifact store cannot be read: {error}")
        else:
            outcome = manifest
        if outcome is not None:
            self._loop.call_soon_threadsafe(self._settle, pending, outcome)

    def _settle(self, pending: _PendingTask, outcome: Manifest | SfumatoError) -> None:
        """Hand the outcome of a task to `next`, once."""
        if self._pending.pop(pending.task.id, None) is None:
            return
        self._outcomes.put(outcome)
        if pending.interval:
            self._open[pending.task.service] -= 1
        if pending.posted is not None:
            pending.posted.cancel()
        if self._unsent[pending.task.service]:
            self._changed.set()

    def _check_all_now(self) -> None:
        for pending in self._pending.values():
            if pending.interval:
                pending.due, pending.interval = 0.0, self._settings.look
        self._changed.set()

    async def _check_overdue(self) -> None:
        """Check tasks whose result is overdue: first look in the store, then publish them again."""
        while True:
            await asyncio.sleep(min(RETRY, self._settings.look))
            self._lasting = self._lasting_refusal()
            if self._bus.away_since is not None:
                continue
            now = time.monotonic()
            overdue = [pending for pending in self._pending.values() if pending.interval and pending.due <= now]
            for service in {pending.task.service for pending in overdue} - self._ready:
                await self._ensure(service)
            reading = [self._loop.run_in_executor(self._readers, find, pending.task, self._artifacts) for pending in overdue]
            for pending, found in zip(overdue, await asyncio.gather(*reading, return_exceptions=True), strict=True):
                if isinstance(found, Manifest):
                    self._refusals.pop(STORE, None)
                    self._settle(pending, found)
                    continue
                if found is None:
                    self._refusals.pop(STORE, None)
                else:
                    self._refused(STORE, found if isinstance(found, SfumatoError) else Unavailable(f"The artifact store fails: {found!r}."))
                if pending.task.id in self._pending:
                    pending.interval = min(2 * pending.interval, MAX_BACKOFF * self._settings.look)
                    await self._post(pending)
            await self._free_stuck()

    async def _free_stuck(self) -> None:
        """Remove tasks that are never delivered again: they reached the maximum of deliveries and their advisory was lost."""
        suspects = [pending for pending in self._pending.values() if pending.queued > 1]
        for service in {pending.task.service for pending in suspects}:
            try:
                info = await self._bus.js.consumer_info(stream_of(service), CONSUMER)
                if info.num_pending or info.num_ack_pending or await self._advisories_pending():
                    continue
                for pending in suspects:
                    if pending.task.service == service:
                        log.warning("task %s was stuck in the queue", pending.task.id)
                        await self._bus.js.purge_stream(stream_of(service), subject=task_subject(service, pending.task.id))
                        pending.due, pending.queued = 0.0, 0
            except (NatsError, TimeoutError) as error:
                log.warning("the queue of %s cannot be checked now: %s", service, error)

    async def _advisories_pending(self) -> bool:
        """Whether there are advisories (of any task) that have not been processed yet."""
        try:
            return (await self._bus.js.stream_info(ADVISORIES)).state.messages > 0
        except NotFoundError:
            return False
