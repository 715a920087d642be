"""A service's worker on the bus: takes tasks, does them one at a time, says how they ended.

    python -m sfumato.runtime.worker --service scoring --handlers services.scoring.tasks

The order is what makes any moment a good one to die in: artifact, manifest, result message, acknowledgement. A task whose
manifest is there is not done again, only announced again.
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
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeAlias

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from opentelemetry.trace import SpanKind, StatusCode

from sfumato.errors import InvalidInput, SfumatoError, Unavailable
from sfumato.runtime import telemetry
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import CONSUMER, Bus, Puller, Result, checked_service, failure_subject, stream_of
from sfumato.runtime.failures import Failure, is_final
from sfumato.runtime.settings import BusSettings, Settings, TelemetrySettings
from sfumato.runtime.tasks import Handler, Task, perform
from sfumato.runtime.versions import libraries

log = logging.getLogger(__name__)

# A worker takes as many tasks at once as it does in this time, judged by the slowest of late: a picture is taken by itself,
# what takes a millisecond is taken by the dozen. Tasks in one worker's hands are no other's.
HANDFUL_SECONDS = 0.05
HANDFUL = 64
PAUSE = 0.2
"""Seconds before another try, while the bus is not as it should be."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a message: a result to announce, or a failure after which it is to be given out again."""

    message: Msg
    result: Result | None
    failure: Failure | None = None
    seconds: float = 0.0


Turn: TypeAlias = Callable[[Callable[[Any, Any], list[_Outcome]]], Awaitable[list[_Outcome]]]


class Worker:
    """Does one service's tasks in another thread, so that the bus always hears from it."""

    def __init__(
        self, bus: Bus, service: str, handlers: Mapping[str, Handler], artifacts: ArtifactStore, turn: Turn | None = None
    ) -> None:
        """``turn`` does work in the thread of the service's engine when it is its turn there; a thread of its own where absent."""
        self._bus, self._service, self._handlers, self._artifacts = bus, checked_service(service), handlers, artifacts
        self._versions = libraries()
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._held: dict[str, Msg] = {}
        self._slowest = HANDFUL_SECONDS
        self._ending = False
        self._closing: list[asyncio.Task[None]] = []
        self._turn = turn or _OwnThread()

    async def run(self, stop: asyncio.Event) -> bool:
        """Work until ``stop`` is set; then finish what is in hand or give it back. False when an engine is still at it."""
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
                    await puller.ask(most)  # the next ones come while these are done
            except NatsError as error:
                log.warning("tasks of %s cannot be had now: %s", self._service, error)
                await asyncio.sleep(PAUSE)
                await self._ensure()
                continue
            if messages:
                await self._do(messages)

    async def _ensure(self) -> None:
        """Set up the work queue, however long the bus takes to be ready for it."""
        while not self._ending:
            try:
                return await self._bus.ensure(self._service)
            except (NatsError, TimeoutError) as error:
                log.warning("the bus is not ready: %s", error)
                await asyncio.sleep(PAUSE)

    async def _do(self, messages: list[Msg]) -> None:
        for message in messages:
            self._held[message.reply] = message
        try:
            outcomes = await self._turn(lambda engine, caller: [self._one(message) for message in messages])
        except Unavailable:  # the service takes no more work
            outcomes = [_Outcome(message, None) for message in messages]
        for outcome in outcomes:
            self._slowest = max(outcome.seconds, 0.9 * self._slowest, 1e-4)
        # Announcing takes a round trip to the server, in which the next ones are done.
        while len(self._closing) > 1:
            await self._closing.pop(0)
        self._closing.append(asyncio.create_task(self._close(outcomes)))

    async def _close(self, outcomes: list[_Outcome]) -> None:
        """Announce what is done, then acknowledge it; give back the rest."""
        results = [outcome.result for outcome in outcomes if outcome.result is not None]
        try:
            if results:
                await self._bus.announce(results)
        except NatsError as error:
            # Nobody heard of it. The manifest is there: whoever gets the task again only announces it.
            log.warning("%d results could not be announced: %s", len(results), error)
            results = []
        for outcome in outcomes:
            if outcome.result is not None and results:
                await self._say(outcome.message.ack())
            elif outcome.failure is not None:
                await self._tried(outcome.message, outcome.failure)
            else:
                await self._say(outcome.message.nak(delay=PAUSE if outcome.result else None))
            self._held.pop(outcome.message.reply, None)

    async def _tried(self, message: Msg, failure: Failure) -> None:
        """Keep the reason, then have the task given out again; the server counts how often."""
        subject = failure_subject(self._service, _task_id(message))
        try:
            await asyncio.wait_for(await self._bus.send(subject, failure.model_dump_json().encode()), 5.0)
        except (NatsError, TimeoutError) as error:
            log.warning("a reason could not be kept: %s", error)
        await self._say(message.nak(delay=self._bus.settings.retry_delay))

    async def _say(self, word: Coroutine[object, object, None]) -> None:
        """Say something to the server that it can do without."""
        try:
            await word
        except NatsError as error:
            log.warning("%s", error)

    async def _beat(self) -> None:
        """Say of everything in hand that it is in work, three times in the time after which it would be given to another."""
        while True:
            await asyncio.sleep(self._bus.settings.ack_wait / 3)
            for message in list(self._held.values()):
                await self._say(message.in_progress())

    def _one(self, message: Msg) -> _Outcome:
        """Do one task; in the engine's thread. Never raises: everything becomes an outcome."""
        task_id, started = _task_id(message), time.perf_counter()
        if self._ending:
            return _Outcome(message, None)
        with telemetry.incoming(message.headers), telemetry.bound(task=task_id):
            error = self._tried_once(message, task_id)
        failure, seconds = Failure.of(error) if error is not None else None, time.perf_counter() - started
        if error is not None and not is_final(error):
            return _Outcome(message, None, failure, seconds)
        result = Result(task_id=task_id, service=self._service, failure=failure, worker=self._name, seconds=round(seconds, 6))
        return _Outcome(message, result, None, seconds)

    def _tried_once(self, message: Msg, task_id: str) -> Exception | None:
        """Do the task of a message, and tell of it: a span, metrics, a line where it failed. What it failed of."""
        kind, started = "unknown", time.perf_counter()
        with telemetry.tracer.start_as_current_span(f"{self._service} task", kind=SpanKind.CONSUMER) as span:
            try:
                task = _task(message.data, task_id, self._service)
                if task.kind not in self._handlers:
                    raise InvalidInput("kind", f"{self._service} knows no {task.kind!r}.", hint=f"It knows {', '.join(self._handlers)}.")
                kind = task.kind
                span.update_name(kind)
                span.set_attributes({"sfumato.kind": kind, "sfumato.samples": len(task.items)})
                perform(task, self._handlers[kind], self._artifacts, self._versions)
            except Exception as error:
                telemetry.tasks.labels(kind, "failed" if is_final(error) else "retried").inc()
                span.record_exception(error)
                span.set_status(StatusCode.ERROR, type(error).__name__)
                log.warning("task %s failed: %s", task_id, Failure.of(error).message, extra={"kind": kind}, exc_info=error)
                return error
            telemetry.tasks.labels(kind, "done").inc()
            telemetry.samples.labels(kind).inc(len(task.items))
            telemetry.task_seconds.labels(kind).observe(time.perf_counter() - started)
        return None


class _OwnThread:
    """A thread for a worker whose service has no other."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # A daemon: what it does cannot be interrupted, and must not keep the process.
        threading.Thread(target=self._obey, name="engine", daemon=True).start()

    async def __call__(self, work: Callable[[Any, Any], list[_Outcome]]) -> list[_Outcome]:
        """The work, done in it."""
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[list[_Outcome]] = loop.create_future()

        def order() -> None:
            outcomes = work(None, None)
            loop.call_soon_threadsafe(lambda: finished.cancelled() or finished.set_result(outcomes))

        self._orders.put(order)
        return await finished

    def _obey(self) -> None:
        while True:
            self._orders.get()()


def _task_id(message: Msg) -> str:
    return message.subject.rpartition(".")[2]


def _task(data: bytes, task_id: str, service: str) -> Task:
    """The task of a message, which anybody may have written.

    Raises:
        ValueError: it is no task, not the one its subject names, or another service's.
    """
    task = Task.model_validate_json(data)
    if task.id != task_id or task.service != service:
        raise ValueError(f"a message on the subject of task {task_id} of {service} holds task {task.id} of {task.service}")
    return task


async def serve(service: str, handlers: Mapping[str, Handler], artifacts: ArtifactStore, settings: BusSettings) -> bool:
    """Work until SIGTERM or SIGINT. False when an engine is still at it after the grace period.

    Raises:
        Unavailable: there is no bus.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Bus(settings, f"sfumato {service} worker") as bus:
        log.info("worker of %s is up", service)
        return await Worker(bus, service, handlers, artifacts).run(stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of a worker process; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sfumato.runtime.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--service", required=True, help="whose tasks to take")
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
        os._exit(0)  # the engine's thread cannot be ended in good order
    return 0


if __name__ == "__main__":
    sys.exit(main())
