"""How tasks reach the services: a small protocol, and the local one, a process per worker on this machine."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights, SfumatoError, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Handler, Manifest, Task, perform
from sfumato.runtime.versions import libraries


class Transport(Protocol):
    """Takes tasks to workers and brings manifests back, in any order."""

    def prepare(self, services: Iterable[str]) -> None:
        """Say that these services will be needed soon; returns at once."""
        ...

    def submit(self, task: Task) -> None:
        """Queue a task for its service."""
        ...

    def next(self) -> Manifest:
        """Wait for any task to finish.

        Raises:
            SfumatoError: a task failed, with the worker's words.
        """
        ...

    def release(self, service: str) -> None:
        """Say that a service is not needed any more."""
        ...


class Companion(Protocol):
    """Something that must run beside a service's workers, such as the VLM server they ask."""

    def start(self) -> None:
        """Begin to start it; returns at once."""
        ...

    def check(self) -> None:
        """Raise what ended it, if anything did."""
        ...

    def stop(self) -> None:
        """End it; returns when it has ended."""
        ...


@dataclass(frozen=True, slots=True)
class LocalService:
    """One service on this machine: ``module`` has ``HANDLERS``; ``environment`` is its workers'."""

    module: str
    workers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    companion: Companion | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    task_id: str
    kind: str
    message: str
    trace: str


@dataclass(slots=True, eq=False)
class _Worker:
    """A process and the pipe to it; a busy one has a task and owes a result."""

    process: BaseProcess
    pipe: Connection
    busy: bool = False

    def lost(self) -> Unavailable:
        """What to say when the process is gone."""
        self.process.join(5)
        return Unavailable(
            f"Worker {self.process.name} ended with code {self.process.exitcode}.",
            hint="Out of memory? Finished work is kept: run the same command again.",
        )


class LocalTransport:
    """Worker processes that start with their first task, or earlier when told to prepare. Use it in a ``with`` block.

    Every worker has a pipe of its own and one task at a time. Nothing is shared between workers, no queue and no lock, so that
    one may be ended at any moment without holding up the others.
    """

    def __init__(self, services: Mapping[str, LocalService], artifacts_url: str) -> None:
        self._services = services
        self._artifacts_url = artifacts_url
        self._context = multiprocessing.get_context("spawn")
        self._pending: dict[str, deque[Task]] = {}
        self._workers: dict[str, list[_Worker]] = {}

    def __enter__(self) -> LocalTransport:
        return self

    def __exit__(self, *exception: object) -> None:
        for service in list(self._workers):
            self.release(service)

    def prepare(self, services: Iterable[str]) -> None:
        """Start the workers of these services, and what must run beside them."""
        for name in services:
            if name in self._workers:
                continue
            if name not in self._services:
                raise InvalidInput("recipe", f"no service is called {name!r}.")
            service = self._services[name]
            if service.companion is not None:
                service.companion.start()
            self._pending[name] = deque()
            self._workers[name] = [self._start(name, service, index) for index in range(service.workers)]

    def submit(self, task: Task) -> None:
        """Give a task to a free worker of its service, or keep it until one is free."""
        self.prepare([task.service])
        self._pending[task.service].append(task)
        self._dispatch(task.service)

    def next(self) -> Manifest:
        """Wait for any task; a dead worker is an error, not a silence.

        Raises:
            SfumatoError: a task failed, a worker was killed, or what runs beside it ended.
        """
        while True:
            for name in self._workers:
                companion = self._services[name].companion
                if companion is not None:
                    companion.check()
            busy = {worker.pipe: (name, worker) for name, workers in self._workers.items() for worker in workers if worker.busy}
            for pipe in wait(list(busy), timeout=1.0)[:1]:
                name, worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                return self._received(name, worker)

    def release(self, service: str) -> None:
        """End a service's workers at once: what they were doing is lost, what they finished is stored."""
        workers = self._workers.pop(service, [])
        for worker in workers:
            worker.pipe.close()  # an idle worker goes by itself
            if worker.busy:
                worker.process.terminate()
        for worker in workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        if self._pending.pop(service, None) is not None:
            companion = self._services[service].companion
            if companion is not None:
                companion.stop()

    def _start(self, name: str, service: LocalService, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        arguments = (service.module, dict(service.environment), self._artifacts_url, theirs)
        process = self._context.Process(target=_work, args=arguments, name=f"{name}-{index}", daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        return _Worker(process, ours)

    def _dispatch(self, name: str) -> None:
        for worker in self._workers[name]:
            if self._pending[name] and not worker.busy:
                try:
                    worker.pipe.send(self._pending[name].popleft())
                except OSError:
                    raise worker.lost() from None
                worker.busy = True

    def _received(self, name: str, worker: _Worker) -> Manifest:
        try:
            result: Manifest | _Failure = worker.pipe.recv()
        except (EOFError, OSError):
            raise worker.lost() from None
        worker.busy = False
        self._dispatch(name)
        if isinstance(result, _Failure):
            raise _as_error(result)
        return result


def _work(module: str, environment: Mapping[str, str], artifacts_url: str, pipe: Connection) -> None:
    """A worker process: take a task, do it, report it, until the pipe is closed. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    handlers: Mapping[str, Handler] = importlib.import_module(module).HANDLERS
    artifacts = ArtifactStore(artifacts_url)
    versions = libraries()
    while True:
        try:
            task: Task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(perform(task, handlers[task.kind], artifacts, versions))
        except Exception as error:  # the boundary of the process: everything becomes a message to the parent
            message = str(error) if isinstance(error, SfumatoError) else f"{type(error).__name__}: {error}"
            pipe.send(_Failure(task.id, type(error).__name__, message, traceback.format_exc()))


def _as_error(failure: _Failure) -> SfumatoError:
    """The worker's error in this process, of the class the command line tells apart."""
    if failure.kind == InvalidInput.__name__:
        field_name, _, message = failure.message.partition(": ")
        return InvalidInput(field_name, message)
    for kind in (MissingWeights, BrokenWeights, Unavailable):
        if failure.kind == kind.__name__:
            return kind(failure.message)
    error = SfumatoError(f"A task failed: {failure.message}", hint="Finished work is kept: run the same command again.")
    error.add_note(failure.trace)
    return error
