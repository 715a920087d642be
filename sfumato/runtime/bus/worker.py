"""A service's worker on the bus: takes tasks, does them one at a time, announces the results.

    python -m sfumato.runtime.bus.worker --service scoring --handlers services.scoring.tasks

The order makes a crash at any moment safe: artifact, manifest, result message, acknowledgement. A task whose manifest is in the
store is not done again, only announced again. A task that fails too often becomes a dead letter, which the worker of its last failure
publishes; a worker that is killed during a task does not count as a failure of the task.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol, TypeVar

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from opentelemetry.trace import Span, SpanKind, StatusCode

from sfumato.errors import Blocked, InvalidInput, SfumatoError, Unavailable
from sfumato.runtime import telemetry
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.backoff import pause
from sfumato.runtime.bus import CONSUMER, Bus, DeadLetter, Result, checked_service, stream_of
from sfumato.runtime.bus.puller import Puller
from sfumato.runtime.failures import Failure, is_final, is_passing
from sfumato.runtime.models.versions import libraries
from sfumato.runtime.settings import BusSettings, Settings, TelemetrySettings
from sfumato.runtime.tasks import Handler, Task, perform

log = logging.getLogger(__name__)

# A worker takes as many tasks at once as it does in this time, estimated from the slowest recent task: a picture is taken alone,
# tasks of a millisecond in dozens. Tasks that one worker has taken are not available to others.
HANDFUL_SECONDS = 0.05
HANDFUL = 64
PAUSE = 0.2
"""Seconds before the next try, while the bus does not answer."""
REPEATED = 30.0
"""Seconds between two log lines about the same trouble."""
LONGEST_DELAY = 30.0
"""The most seconds after which a failed task is delivered again."""

T = TypeVar("T")


class EngineCall(Protocol):
    """Runs a function in the engine's thread and returns its result (as `serving.engine_queue.EngineQueue.call_unbounded`)."""

    def __call__(self, work: Callable[..., T]) -> Awaitable[T]:
        """The function may be called with arguments; it ignores them.

        Raises:
            Unavailable: the engine takes no more calls.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The outcome of a message: a result to announce, a failure after which it may be delivered again, or neither (not done)."""

    message: Msg
    result: Result | None = None
    failure: Failure | None = None
    # Whether the failure counts against the task.
    counted: bool = True
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)


class Worker:
    """Does one service's tasks in the engine's thread, so that the event loop stays free to answer the bus."""

    def __init__(
        self, bus: Bus, service: str, handlers: Mapping[str, Handler], artifacts: ArtifactStore, call: EngineCall | None = None
    ) -> None:
        """Create a worker; `run` starts it.

        Args:
            bus: an open connection.
            service: the service whose tasks it takes.
            handlers: the functions that do the tasks, by kind.
            artifacts: the store for their results.
            call: runs functions in an engine's thread that others use too; without it the worker has a thread of its own.

        Raises:
            InvalidInput: the service's name is not valid.
        """
        self._bus, self._service, self._handlers, self._artifacts = bus, checked_service(service), handlers, artifacts
        self._call: EngineCall = call or _OwnThread().call
        self._versions = libraries()
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._held: dict[str, Msg] = {}
        self._slowest = HANDFUL_SECONDS
        self._ending = False
        self._closing: list[asyncio.Task[None]] = []
        # Monotonic time since which the bus, and what tasks need, refuse for reasons that last; None while they do not.
        self._refused_since: float | None = None
        self._blocked_since: float | None = None
        self._told = ("", 0.0)

    async def run(self, stop: asyncio.Event) -> bool:
        """Work until ``stop`` is set; then finish the tasks it has taken, or give them back when the settings' grace is over.

        Returns whether it drained: False when the engine is still busy with a task, which was given back to the queue. Waits while the
        bus is away. The connection must stay open until it returns.

        Raises:
            Blocked: the bus refuses for longer than the settings' patience, for a reason that lasts.
        """
        beating = asyncio.create_task(self._beat())
        puller = Puller(self._bus, stream_of(self._service), CONSUMER)
        await puller.open()
        try:
            working = asyncio.create_task(self._work(puller))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            self._ending = True
            untouched = await puller.close()
            done, _ = await asyncio.wait([working], timeout=self._bus.settings.grace)
            if working in done:
                working.result()
                await asyncio.gather(*self._closing)
            else:
                working.cancel()
            for message in [*untouched, *self._held.values()]:
                await self._say(message.nak())
            return bool(done)
        finally:
            beating.cancel()

    async def _work(self, puller: Puller) -> None:
        await self._ensure()
        while not self._ending:
            most = max(1, min(HANDFUL, int(HANDFUL_SECONDS / self._slowest)))
            try:
                messages = await puller.take(most)
                if most > 1:
                    await puller.ask(most)  # the next tasks arrive while these are done
            except (NatsError, Blocked) as error:
                self._wait_or_give_up(f"tasks of {self._service} cannot be pulled now", error)
                await asyncio.sleep(PAUSE)
                await self._ensure()
                continue
            if messages:
                self._refused_since = None
                await self._do(messages)

    async def _ensure(self) -> None:
        """Set up the work queue; wait until the bus is ready."""
        while not self._ending:
            try:
                return await self._bus.ensure(self._service)
            except (NatsError, TimeoutError) as error:
                self._wait_or_give_up("the bus is not ready", error)
                await asyncio.sleep(PAUSE)

    def _wait_or_give_up(self, what: str, error: Exception) -> None:
        """Log why the bus is not usable, the same reason twice a minute.

        Raises:
            Blocked: it refuses since the settings' patience, for a reason that lasts.
        """
        now, refused = time.monotonic(), self._bus.refusal(error)
        words, when = self._told
        if str(error) != words or now - when > REPEATED:
            self._told = str(error), now
            log.warning("%s: %s", what, refused or error)
        if refused is None:
            return
        self._refused_since = self._refused_since or now
        if now - self._refused_since > self._bus.settings.patience:
            raise refused from error

    async def _do(self, messages: list[Msg]) -> None:
        for message in messages:
            self._held[message.reply] = message
        try:
            outcomes = await self._call(lambda *_: [self._one(message) for message in messages])
        except Unavailable as error:
            log.info("tasks are given back: %s", error)
            outcomes = [_Outcome(message) for message in messages]
            await asyncio.sleep(PAUSE)
        for outcome in outcomes:
            self._slowest = max(outcome.seconds, 0.9 * self._slowest, 1e-4)
        # Announcing takes a round trip to the server; the next tasks are done meanwhile.
        while len(self._closing) > 1:
            await self._closing.pop(0)
        self._closing.append(asyncio.create_task(self._close(outcomes)))

    async def _close(self, outcomes: list[_Outcome]) -> None:
        """Announce and acknowledge the tasks that are done; give back the others."""
        done = [(outcome.result, outcome.headers) for outcome in outcomes if outcome.result is not None]
        announced = True
        try:
            if done:
                await self._bus.announce([result for result, _ in done], [headers for _, headers in done])
        except NatsError as error:
            # The manifest is in the store: the worker that gets the task again only announces it.
            log.warning("%d results could not be announced: %s", len(done), self._bus.explained(error))
            announced = False
        for outcome in outcomes:
            if outcome.failure is not None:
                await self._failed(outcome, outcome.failure)
            elif outcome.result is None:
                await self._say(outcome.message.nak())
            else:
                await self._say(outcome.message.ack() if announced else outcome.message.nak(delay=PAUSE))
            self._held.pop(outcome.message.reply, None)

    async def _failed(self, outcome: _Outcome, failure: Failure) -> None:
        """Store the reason and have the task delivered again, or make it a dead letter if it failed too often."""
        message, task_id, settings = outcome.message, _task_id(outcome.message), self._bus.settings
        sequence, delivery = message.metadata.sequence.stream, message.metadata.num_delivered or 1
        try:
            failures = (await self._bus.failed(self._service, task_id, sequence, failure, outcome.counted)).failures
            if outcome.counted and failures >= settings.failures:
                text = message.data.decode(errors="replace")
                await self._bus.set_aside(
                    DeadLetter(task_id=task_id, service=self._service, deliveries=delivery, failures=failures, failure=failure, task=text)
                )
                return await self._say(message.term())
        except (NatsError, ValueError) as error:
            log.warning("a failure could not be stored: %s", self._bus.explained(error))
        await self._say(message.nak(delay=pause(delivery, settings.retry_delay, LONGEST_DELAY)))

    async def _say(self, word: Coroutine[object, object, None]) -> None:
        """Send an acknowledgement; if it is lost, the task is delivered again."""
        try:
            await word
        except NatsError as error:
            log.warning("%s", error)

    async def _beat(self) -> None:
        """Report every taken task as in progress, three times per ``ack_wait``, after which the server would deliver it again."""
        while True:
            await asyncio.sleep(self._bus.settings.ack_wait / 3)
            for message in list(self._held.values()):
                await self._say(message.in_progress())

    def _one(self, message: Msg) -> _Outcome:
        """Do one task, in the engine's thread. Does not raise: errors become outcomes."""
        if self._ending:
            return _Outcome(message)
        task_id = _task_id(message)
        with (
            telemetry.incoming(message.headers),
            telemetry.bound(task=task_id),
            telemetry.tracer.start_as_current_span(f"{self._service} task", kind=SpanKind.CONSUMER) as span,
        ):
            kind, samples, failure, final, counted = "unknown", 0, None, True, True
            started = time.perf_counter()
            try:
                task = _task(message.data, task_id, self._service)
                if task.kind not in self._handlers:
                    raise InvalidInput("kind", f"{self._service} knows no {task.kind!r}.", hint=f"It knows {', '.join(self._handlers)}.")
                kind, samples = task.kind, len(task.items)
                span.update_name(kind)
                span.set_attributes({"sfumato.kind": kind, "sfumato.samples": samples})
                perform(task, self._handlers[kind], self._artifacts, self._versions)
                self._blocked_since = None
            except Exception as error:
                failure, counted = Failure.of(error), not is_passing(error)
                final = is_final(error) or self._blocked_too_long(error)
                _told(span, failure, error)
            seconds = time.perf_counter() - started
            _measured(kind, samples, "done" if failure is None else "failed" if final else "retried", seconds)
            if not final:
                return _Outcome(message, None, failure, counted, seconds)
            result = Result(task_id=task_id, service=self._service, failure=failure, worker=self._name, seconds=round(seconds, 6))
            return _Outcome(message, result, None, seconds=seconds, headers=telemetry.outgoing())

    def _blocked_too_long(self, error: Exception) -> bool:
        """Whether what tasks need has refused since the settings' patience: then the run is told, instead of trying again."""
        if not isinstance(error, Blocked):
            return False
        now = time.monotonic()
        self._blocked_since = self._blocked_since or now
        return now - self._blocked_since > self._bus.settings.patience


class _OwnThread:
    """A thread for a worker without an engine queue. A daemon: its work cannot be interrupted and must not keep the process alive."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._work, name="engine", daemon=True).start()

    async def call(self, work: Callable[..., T]) -> T:
        """An `EngineCall`; functions run in order and do not raise."""
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[T] = loop.create_future()

        def order() -> None:
            result = work()
            loop.call_soon_threadsafe(lambda: finished.cancelled() or finished.set_result(result))

        self._orders.put(order)
        return await finished

    def _work(self) -> None:
        while True:
            self._orders.get()()


def _told(span: Span, failure: Failure, error: Exception) -> None:
    """Record a failure in the log and the trace."""
    log.warning("a task failed: %s", failure.message, exc_info=error)
    span.record_exception(error)
    span.set_status(StatusCode.ERROR, type(error).__name__)


def _measured(kind: str, samples: int, outcome: str, seconds: float) -> None:
    telemetry.tasks.labels(kind, outcome).inc()
    telemetry.task_seconds.labels(kind).observe(seconds)
    if outcome == "done":
        telemetry.samples.labels(kind).inc(samples)


def _task_id(message: Msg) -> str:
    return message.subject.rpartition(".")[2]


def _task(data: bytes, task_id: str, service: str) -> Task:
    """The task of a message, which is not trusted.

    Raises:
        ValueError: it is not a task, not the task its subject names, or another service's task.
    """
    task = Task.model_validate_json(data)
    if task.id != task_id or task.service != service:
        raise ValueError(f"a message on the subject of task {task_id} of {service} holds task {task.id} of {task.service}")
    return task


async def serve(service: str, handlers: Mapping[str, Handler], artifacts: ArtifactStore, settings: BusSettings) -> bool:
    """Work until SIGTERM or SIGINT. Returns False if the engine is still busy after the grace period.

    Raises:
        Unavailable: the bus does not answer.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Bus(settings, f"sfumato {service} worker") as bus:
        log.info("worker of %s is up", service)
        return await Worker(bus, service, handlers, artifacts).run(stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of a worker process; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sfumato.runtime.bus.worker", description="A worker of one service.")
    parser.add_argument("--service", required=True, help="the service whose tasks it takes")
    parser.add_argument("--handlers", required=True, metavar="MODULE", help="the module with the service's HANDLERS")
    options = parser.parse_args(arguments)
    try:
        with telemetry.observing(options.service, TelemetrySettings()):
            handlers = importlib.import_module(options.handlers).HANDLERS
            finished = asyncio.run(serve(options.service, handlers, ArtifactStore(Settings().artifacts_url), BusSettings()))
    except SfumatoError as error:
        print(f"sfumato: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    if not finished:
        log.warning("%s was still at work after the grace period; its task was given back", options.service)
        logging.shutdown()
        os._exit(0)  # the engine's thread cannot be interrupted
    return 0


if __name__ == "__main__":
    sys.exit(main())
