"""Sends tasks to workers on this machine, each a process (see `orchestrator.engine.transport` and `local_worker`)."""

from __future__ import annotations

import heapq
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Protocol

from sfumato.errors import InvalidInput, SfumatoError, Unavailable
from sfumato.runtime.child_processes import ChildProcess
from sfumato.runtime.failures import Failure
from sfumato.runtime.tasks import Manifest, Task

RECENT = 64
"""The latest spans, which a late result may still overlap."""
LEAVING = 10.0
"""Seconds that a worker has to end when its pipe is closed."""


class Companion(Protocol):
    """A process that a service's workers depend on, such as the VLM server that they query."""

    def start(self) -> None:
        """Start it; returns without waiting."""
        ...

    def check(self) -> None:
        """Raise the error that ended it, if any."""
        ...

    def stop(self) -> None:
        """Stop it; returns when it has ended."""
        ...


@dataclass(frozen=True, slots=True)
class LocalService:
    """One service on this machine: ``module`` has ``HANDLERS``; ``environment`` is its workers'.

    ``keep``: the workers keep running while they are not needed (there is memory for all services), instead of restarting each time.
    """

    module: str
    workers: int = 1
    keep: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    companion: Companion | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a task, and when the worker started and ended it."""

    outcome: Manifest | Failure
    started: float
    ended: float


@dataclass(order=True, frozen=True, slots=True)
class _Pending:
    """A queued task, ordered by urgency, then by age."""

    order: tuple[int, int]
    task: Task = field(compare=False)


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker process and the pipe to it; a busy one has a task without a result."""

    name: str
    process: ChildProcess
    pipe: Connection
    busy: bool = False

    def lost(self) -> Unavailable:
        """The error for a process that ended."""
        return Unavailable(
            f"Worker {self.name} ended with code {self.process.wait()}.",
            hint="Out of memory? Finished work is kept: run the same command again.",
        )


class LocalTransport:
    """Worker processes that start with their first task, or earlier with `prepare`. Use it in a ``with`` block.

    Every worker has its own pipe and one task at a time. Workers share no queue and no lock, so that any of them can be terminated
    without blocking the others.
    """

    def __init__(self, services: Mapping[str, LocalService], artifacts_url: str) -> None:
        self._services = services
        self._artifacts_url = artifacts_url
        self._pending: dict[str, list[_Pending]] = {}
        self._workers: dict[str, list[_Worker]] = {}
        self._submitted = 0
        self._began = time.monotonic()
        # Intervals in which any worker was busy, on this machine's monotonic clock, and the number of finished tasks.
        self.spans: list[tuple[float, float]] = []
        self.tasks = 0
        self._interrupted: SfumatoError | None = None

    def __enter__(self) -> LocalTransport:
        return self

    def __exit__(self, *exception: object) -> None:
        for service in list(self._workers):
            self._end(service)

    def prepare(self, services: Iterable[str]) -> None:
        """Start the workers of these services, and their companions."""
        for name in services:
            if name in self._workers:
                continue
            if name not in self._services:
                raise InvalidInput("recipe", f"no service is called {name!r}.")
            service = self._services[name]
            if service.companion is not None:
                service.companion.start()
            self._pending[name] = []
            self._workers[name] = [self._start(name, service, index) for index in range(service.workers)]

    def submit(self, task: Task, urgency: int = 0) -> None:
        """Give a task to a free worker of its service, or keep it until one is free."""
        self.prepare([task.service])
        self._submitted += 1
        heapq.heappush(self._pending[task.service], _Pending((-urgency, self._submitted), task))
        self._dispatch(task.service)

    def next(self) -> Manifest:
        """Wait for any task; a dead worker raises an error.

        Raises:
            SfumatoError: a task failed, a worker was killed, or its companion ended.
        """
        while True:
            if self._interrupted is not None:
                raise self._interrupted
            for name in self._workers:
                companion = self._services[name].companion
                if companion is not None:
                    companion.check()
            busy = {worker.pipe: (name, worker) for name, workers in self._workers.items() for worker in workers if worker.busy}
            for pipe in wait(list(busy), timeout=1.0)[:1]:
                name, worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                return self._received(name, worker)

    def interrupt(self, error: SfumatoError) -> None:
        """Have `next` raise ``error`` within a second; from any thread."""
        self._interrupted = error

    def release(self, service: str) -> None:
        """Stop a service's workers, unless it has ``keep``."""
        if not self._services[service].keep:
            self._end(service)

    def busy_share(self) -> float:
        """The share of the time since the start in which any worker was busy; the rest is overhead of the engine."""
        return sum(ended - started for started, ended in self.spans) / (time.monotonic() - self._began)

    def _worked(self, started: float, ended: float) -> None:
        """Merge an interval into the spans, which stay few because most overlap. Results arrive slightly out of order."""
        last = sorted([*self.spans[-RECENT:], (started, ended)])
        joined = [last[0]]
        for begin, end in last[1:]:
            if begin <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((begin, end))
        self.spans[-RECENT:] = joined

    def _end(self, service: str) -> None:
        """Stop a service's workers immediately: running tasks are lost, finished ones are stored."""
        workers = self._workers.pop(service, [])
        for worker in workers:
            worker.pipe.close()  # an idle worker exits when its pipe is closed
            if worker.busy:
                worker.process.kill()
        for worker in workers:
            try:
                worker.process.wait(LEAVING)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        if self._pending.pop(service, None) is not None:
            companion = self._services[service].companion
            if companion is not None:
                companion.stop()

    def _start(self, name: str, service: LocalService, index: int) -> _Worker:
        ours, theirs = Pipe()
        with theirs:  # so that the pipe closes when the process ends
            # A handler's module may come from any folder of this process's path; -P adds no other.
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            module = "orchestrator.transports.local_worker"
            process = ChildProcess(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), service.module, self._artifacts_url],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": paths} | dict(service.environment),
            )
        return _Worker(f"{name}-{index}", process, ours)

    def _dispatch(self, name: str) -> None:
        for worker in self._workers[name]:
            if self._pending[name] and not worker.busy:
                try:
                    worker.pipe.send(heapq.heappop(self._pending[name]).task)
                except OSError:
                    raise worker.lost() from None
                worker.busy = True

    def _received(self, name: str, worker: _Worker) -> Manifest:
        try:
            result: Result = worker.pipe.recv()
        except (EOFError, OSError):
            raise worker.lost() from None
        worker.busy = False
        self.tasks += 1
        self._worked(result.started, result.ended)
        self._dispatch(name)
        if isinstance(result.outcome, Failure):
            raise result.outcome.error()
        return result.outcome
