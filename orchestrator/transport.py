"""How tasks reach the services: a small protocol, and the local one, a process per worker on this machine."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
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


class LocalTransport:
    """Worker processes that start with their first task, or earlier when told to prepare. Use it in a ``with`` block."""

    def __init__(self, services: Mapping[str, LocalService], artifacts_url: str) -> None:
        self._services = services
        self._artifacts_url = artifacts_url
        self._context = multiprocessing.get_context("spawn")
        self._results: Queue[Manifest | _Failure] = self._context.Queue()
        self._tasks: dict[str, Queue[Task | None]] = {}
        self._workers: dict[str, list[BaseProcess]] = {}

    def __enter__(self) -> LocalTransport:
        return self

    def __exit__(self, *exception: object) -> None:
        for service in list(self._workers):
            self.release(service)
        self._results.close()
        self._results.join_thread()

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
            self._tasks[name] = self._context.Queue()
            arguments = (service.module, dict(service.environment), self._artifacts_url, self._tasks[name], self._results)
            self._workers[name] = [
                self._context.Process(target=_work, args=arguments, name=f"{name}-{index}", daemon=True) for index in range(service.workers)
            ]
            for worker in self._workers[name]:
                worker.start()

    def submit(self, task: Task) -> None:
        """Queue a task for its service's workers."""
        self.prepare([task.service])
        self._tasks[task.service].put(task)

    def next(self) -> Manifest:
        """Wait for any task; a dead worker is an error, not a silence.

        Raises:
            SfumatoError: a task failed, or a worker was killed.
        """
        while True:
            try:
                result = self._results.get(timeout=1.0)
            except queue.Empty:
                self._check_alive()
                continue
            if isinstance(result, _Failure):
                raise _as_error(result)
            return result

    def release(self, service: str) -> None:
        """End a service's workers at once: what they were doing is lost, what they finished is stored."""
        for worker in self._workers.pop(service, []):
            worker.terminate()
            worker.join(5)
            if worker.is_alive():
                worker.kill()
                worker.join()
        if service in self._tasks:
            tasks = self._tasks.pop(service)
            tasks.cancel_join_thread()
            tasks.close()
            companion = self._services[service].companion
            if companion is not None:
                companion.stop()

    def _check_alive(self) -> None:
        for name, workers in self._workers.items():
            companion = self._services[name].companion
            if companion is not None:
                companion.check()
            for worker in workers:
                if not worker.is_alive():
                    raise Unavailable(
                        f"Worker {worker.name} ended with code {worker.exitcode}.",
                        hint="Out of memory? Finished work is kept: run the same command again.",
                    )


def _work(
    module: str, environment: Mapping[str, str], artifacts_url: str, tasks: Queue[Task | None], results: Queue[Manifest | _Failure]
) -> None:
    """A worker process: take a task, do it, report it. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    handlers: Mapping[str, Handler] = importlib.import_module(module).HANDLERS
    artifacts = ArtifactStore(artifacts_url)
    versions = libraries()
    while (task := tasks.get()) is not None:
        try:
            results.put(perform(task, handlers[task.kind], artifacts, versions))
        except Exception as error:  # the boundary of the process: everything becomes a message to the parent
            message = str(error) if isinstance(error, SfumatoError) else f"{type(error).__name__}: {error}"
            results.put(_Failure(task.id, type(error).__name__, message, traceback.format_exc()))


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
