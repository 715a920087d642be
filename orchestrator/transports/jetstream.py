"""Tasks to workers over JetStream: the same protocol as the local transport, for workers anywhere.

What this process holds in memory is only what it waits for. It hears of results as they happen; whatever it did not hear, because a
server, a connection or a process was away, it finds in the artifact store: a task with a manifest is done, and one with
neither manifest nor place in the queue is published again.
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
from nats.js.errors import NotFoundError
from opentelemetry.trace import SpanKind

from orchestrator.transports.dead_letters import DeadLetters
from sfumato.errors import PoisonTask, SfumatoError, Unavailable
from sfumato.runtime import telemetry
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import ADVISORIES, CONSUMER, Bus, Result, encoded, gone, present, result_subject, stream_of, task_subject
from sfumato.runtime.cancel import cancel_all
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Manifest, Task, find

log = logging.getLogger(__name__)

# Threads that read manifests: where the store is a bucket, each read is a round trip.
READERS = 8
RETRY = 0.3
"""Seconds until a task that could not be published is tried again."""
SLOWEST_LOOK = 12
"""Looks after a task come less and less often, at the longest this many times the first interval apart."""


@dataclass(order=True, slots=True)
class _Flight:
    """A task that somebody here waits for: the most urgent first, then the oldest."""

    order: tuple[int, int]
    task: Task = field(compare=False)
    data: bytes = field(compare=False)
    # The trace and the words of the log, of whoever submitted it.
    headers: dict[str, str] = field(compare=False)
    # When to look after it by ourselves, and how long to wait after that; no patience: it is in line and not published yet.
    due: float = field(default=0.0, compare=False)
    patience: float = field(default=0.0, compare=False)
    posted: asyncio.Future[dict[str, Any]] | None = field(default=None, compare=False)
    # How many times in a row it was found to be in the queue still.
    queued: int = field(default=0, compare=False)


class JetStreamTransport:
    """A `orchestrator.engine.transport.Transport` for a synchronous engine; the bus lives in a thread. Use it in a ``with`` block.

    Any number of them may wait for the same tasks at once: a task is in the queue once, and all hear of its end.
    """

    def __init__(self, settings: BusSettings, artifacts: ArtifactStore) -> None:
        self._settings, self._artifacts = settings, artifacts
        self._outcomes: SimpleQueue[Manifest | SfumatoError] = SimpleQueue()
        self._submitted: deque[_Flight] = deque()
        self._count = 0
        self._awake = False
        # All that follows is the loop's own.
        self._flights: dict[str, _Flight] = {}
        self._lines: dict[str, list[_Flight]] = defaultdict(list)
        self._open: Counter[str] = Counter()
        self._services: set[str] = set()
        self._ready: set[str] = set()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="manifests")
        self._thread = threading.Thread(target=self._live, name="bus", daemon=True)
        self._started: Future[None] = Future()

    def __enter__(self) -> JetStreamTransport:
        """Connect.

        Raises:
            Unavailable: there is no bus.
        """
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._readers.shutdown()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for nothing more. Tasks in the queue stay there: another may wait for them, and what is done is kept."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._readers.shutdown()

    def prepare(self, services: Iterable[str]) -> None:
        """Set up the work queues of these services; their workers are not this process's to start."""
        self._loop.call_soon_threadsafe(self._prepare, list(services))

    def submit(self, task: Task, urgency: int = 0) -> None:
        """Publish a task, or keep it until its service has fewer on the bus; the most urgent goes first.

        Raises:
            InvalidInput: it is larger than a message may be.
        """
        self._count += 1
        with telemetry.bound(stage=task.stage), telemetry.tracer.start_as_current_span(f"submit {task.kind}", kind=SpanKind.PRODUCER):
            headers = telemetry.outgoing()
        self._submitted.append(_Flight((-urgency, self._count), task, encoded(task), headers))
        if not self._awake:
            self._awake = True
            self._loop.call_soon_threadsafe(self._wake)

    def next(self) -> Manifest:
        """Wait for any task; a bus that stays away is an error, not a silence.

        Raises:
            PoisonTask: one was given up after several tries.
            SfumatoError: one failed, in the worker's words.
            Unavailable: the bus was away for too long.
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
        """Have `next` raise this, once it has handed over what came before; from any thread."""
        self._outcomes.put(error)

    def release(self, service: str) -> None:
        """Nothing: workers on the bus are others' as well."""

    def _check(self) -> None:
        since = self._bus.away_since
        if since is not None and time.monotonic() - since > self._settings.patience:
            hint = "Finished work is kept: when it is back, run the same command again."
            raise Unavailable(f"The bus at {self._settings.url} has been away for {self._settings.patience:.0f} s.", hint=hint)
        if not self._thread.is_alive():
            raise Unavailable("The connection to the bus was ended.", hint="Run the same command again: finished work is kept.")

    # Everything below runs in the bus's thread.

    def _live(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            if self._started.done():
                log.exception("the bus's thread ended")
                self._outcomes.put(error if isinstance(error, SfumatoError) else SfumatoError(f"The bus failed: {error!r}"))
            else:
                self._started.set_exception(error)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._news = asyncio.Event(), asyncio.Event()
        async with Bus(self._settings, f"sfumato orchestrator {os.getpid()}") as self._bus:
            self._bus.on_return.append(self._look_at_once)
            await self._bus.client.subscribe(result_subject("*"), cb=self._heard)
            # So that no result of what is published from here on is missed.
            await self._bus.client.flush()
            self._started.set_result(None)
            jobs = [asyncio.create_task(job) for job in (self._pump(), self._look(), DeadLetters(self._bus, self._artifacts).run())]
            stopping = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait([*jobs, stopping], return_when=asyncio.FIRST_COMPLETED)
                for job in jobs:
                    if job.done():
                        job.result()
            finally:
                await cancel_all([*jobs, stopping])

    def _wake(self) -> None:
        self._news.set()

    def _prepare(self, services: list[str]) -> None:
        self._services.update(services)
        self._news.set()

    async def _pump(self) -> None:
        """Put what was submitted in line, and publish from the lines as far as the window lets."""
        while True:
            await self._news.wait()
            self._news.clear()
            self._awake = False
            while self._submitted:
                flight = self._submitted.popleft()
                if flight.task.id not in self._flights:
                    self._flights[flight.task.id] = flight
                    self._services.add(flight.task.service)
                    heapq.heappush(self._lines[flight.task.service], flight)
            for service in self._services - self._ready:
                await self._ensure(service)
            for service, line in self._lines.items():
                while line and self._open[service] < self._settings.window:
                    flight = heapq.heappop(line)
                    if flight.task.id in self._flights:  # else another's workers were faster
                        self._open[service] += 1
                        flight.patience = self._settings.look
                        await self._post(flight)

    async def _ensure(self, service: str) -> None:
        try:
            await self._bus.ensure(service)
            self._ready.add(service)
        except (NatsError, TimeoutError) as error:
            log.warning("the queue of %s cannot be set up now: %s", service, error)

    async def _post(self, flight: _Flight) -> None:
        """Publish a task; it is looked after when its time has come, whatever becomes of the message."""
        flight.due = time.monotonic() + flight.patience
        if flight.posted is not None:
            flight.posted.cancel()
        try:
            subject = task_subject(flight.task.service, flight.task.id)
            flight.posted = await self._bus.send(subject, flight.data, flight.headers)
        except NatsError:
            flight.due = time.monotonic() + RETRY
            return
        flight.posted.add_done_callback(lambda future: self._posted(flight, future))

    def _posted(self, flight: _Flight, future: asyncio.Future[dict[str, Any]]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            flight.queued = 0
        elif present(error):
            flight.queued += 1
        else:
            if gone(error):
                self._ready.discard(flight.task.service)  # the streams are gone: the store was wiped
            flight.due = time.monotonic() + RETRY

    async def _heard(self, message: Msg) -> None:
        try:
            result = Result.model_validate_json(message.data)
        except ValueError as error:
            log.warning("a result cannot be read: %s", error)
            return
        flight = self._flights.get(result.task_id)
        if flight is None:
            return
        if result.failure is None:
            self._readers.submit(self._read, flight, message.headers)
            return
        error = result.failure.error()
        if result.tries:
            words = f"A {result.service} task was set aside after {result.tries} tries: {error.message}"
            error = PoisonTask(result.task_id, words, hint=error.hint)
        self._settle(flight, error)

    def _read(self, flight: _Flight, headers: Mapping[str, str] | None) -> None:
        """In a reader's thread: fetch the manifest of a task that is said to be done; one that is not there is looked for again."""
        try:
            with telemetry.incoming(headers), telemetry.tracer.start_as_current_span(f"result {flight.task.kind}", kind=SpanKind.CONSUMER):
                manifest = find(flight.task, self._artifacts)
        except Exception as error:  # whatever a store may raise: it is the run's to say
            outcome = error if isinstance(error, SfumatoError) else Unavailable(f"The artifact store cannot be read: {error}")
        else:
            outcome = manifest
        if outcome is not None:
            self._loop.call_soon_threadsafe(self._settle, flight, outcome)

    def _settle(self, flight: _Flight, outcome: Manifest | SfumatoError) -> None:
        """Hand over how a task ended, once."""
        if self._flights.pop(flight.task.id, None) is None:
            return
        self._outcomes.put(outcome)
        if flight.patience:
            self._open[flight.task.service] -= 1
        if flight.posted is not None:
            flight.posted.cancel()
        if self._lines[flight.task.service]:
            self._news.set()

    def _look_at_once(self) -> None:
        for flight in self._flights.values():
            if flight.patience:
                flight.due, flight.patience = 0.0, self._settings.look
        self._news.set()

    async def _look(self) -> None:
        """Look after tasks of which nothing was heard for a while: in the store first, then in the queue."""
        while True:
            await asyncio.sleep(min(RETRY, self._settings.look))
            if self._bus.away_since is not None:
                continue
            now = time.monotonic()
            overdue = [flight for flight in self._flights.values() if flight.patience and flight.due <= now]
            for service in {flight.task.service for flight in overdue} - self._ready:
                await self._ensure(service)
            reading = [self._loop.run_in_executor(self._readers, find, flight.task, self._artifacts) for flight in overdue]
            for flight, found in zip(overdue, await asyncio.gather(*reading, return_exceptions=True), strict=True):
                if isinstance(found, Manifest):
                    self._settle(flight, found)
                    continue
                if found is not None:
                    log.warning("the artifact store cannot be read now: %s", found)
                if flight.task.id in self._flights:
                    flight.patience = min(2 * flight.patience, SLOWEST_LOOK * self._settings.look)
                    await self._post(flight)
            await self._free_stuck()

    async def _free_stuck(self) -> None:
        """Take out of the queue what is in it and will never be given out: its last delivery was counted, and the word of it lost."""
        suspects = [flight for flight in self._flights.values() if flight.queued > 1]
        for service in {flight.task.service for flight in suspects}:
            try:
                info = await self._bus.js.consumer_info(stream_of(service), CONSUMER)
                if info.num_pending or info.num_ack_pending or await self._set_aside_soon():
                    continue
                for flight in suspects:
                    if flight.task.service == service:
                        log.warning("task %s was stuck in the queue", flight.task.id)
                        await self._bus.js.purge_stream(stream_of(service), subject=task_subject(service, flight.task.id))
                        flight.due, flight.queued = 0.0, 0
            except (NatsError, TimeoutError) as error:
                log.warning("the queue of %s cannot be looked at now: %s", service, error)

    async def _set_aside_soon(self) -> bool:
        """Whether there is word, of any task, that it was given out too often, and nobody has acted on it yet."""
        try:
            return (await self._bus.js.stream_info(ADVISORIES)).state.messages > 0
        except NotFoundError:
            return False
