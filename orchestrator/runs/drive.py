"""Executes one run, from its plan to its outcome: the engine over any transport, with events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from orchestrator.engine.engine import Engine
from orchestrator.engine.stages import Progress
from orchestrator.engine.transport import InterruptibleTransport
from orchestrator.recipes.events import EventBuilder
from orchestrator.recipes.plan import Plan
from orchestrator.runs.records import Record
from orchestrator.runs.registering import register_run
from sfumato.errors import InvalidInput, PoisonTask, SfumatoError
from sfumato.registry.models import Models
from sfumato.runs.records import Event, Outcome
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Manifest, Task
from sfumato.runtime.telemetry import bound, incoming, tracer

log = logging.getLogger(__name__)

Connect = Callable[[], AbstractContextManager[InterruptibleTransport]]
OpenRegistry = Callable[[], AbstractContextManager[Models]]


class Stopped(SfumatoError):
    """A run was stopped before its end."""


class RunExecution:
    """One execution of a run. `stop` may be called from any thread, at any time."""

    def __init__(
        self, name: str, record: Record, artifacts: ArtifactStore, connect: Connect, registry: OpenRegistry | None = None
    ) -> None:
        """``connect`` opens the transport; ``registry`` opens the registry for the run's models, if any."""
        self._name, self._artifacts, self._connect, self._open_registry = name, artifacts, connect, registry
        self._record = record
        self._lock = threading.Lock()
        self._transport: InterruptibleTransport | None = None
        self._stopped = False
        # The number of submitted tasks without a result.
        self.in_flight = 0

    def stop(self) -> None:
        """Make `drive` raise `Stopped` as soon as possible; workers finish their current tasks, whose results are kept."""
        with self._lock:
            self._stopped = True
            if self._transport is not None:
                self._transport.interrupt(self._stop())

    def drive(self, tell: Callable[[Event], None]) -> Outcome:
        """Execute the stages of the recipe and store the run's files in the artifact store; the outcome.

        Raises:
            Waiting: the run waits for a person.
            Stopped: see `stop`.
            Unavailable: the bus or the store cannot be reached.
            SfumatoError: a task failed.
        """
        recipe, plan = self._record.recipe, self._record.plan()
        builder, iteration = EventBuilder(recipe.shown), 0

        def notify(progress: Progress) -> None:
            nonlocal iteration
            iteration = progress.iteration
            tell(builder.event(progress))
            self._check()

        with ExitStack() as stack:
            stack.enter_context(incoming(self._record.trace))
            stack.enter_context(bound(run=self._name))
            stack.enter_context(tracer.start_as_current_span("orchestrator.run"))
            transport = stack.enter_context(self._connect())
            with self._lock:
                self._transport = transport
            stack.callback(self._disconnect)
            self._check()
            traced = TracedTransport(transport, self, lambda: iteration)
            state = Engine(plan, plan.spec.batch, traced, self._artifacts, notify).run(recipe.stages, recipe.start(plan))
            files = recipe.files(plan, state, self._artifacts)
            digests = {name: self._artifacts.put(data) for name, data in sorted(files.items())}
            self._register(plan, state)
            conclusion = recipe.conclude(state)
            return Outcome(
                state="finished", stop_reason=conclusion.stop_reason, files=digests, dead_lettered=conclusion.dead_lettered
            )

    def _register(self, plan: Plan[Any], state: Any) -> None:
        """Register the run's models, if there is a registry. A failure does not fail the run: the models can be registered later."""
        if self._open_registry is None:
            return
        try:
            with self._open_registry() as registry:
                register_run(self._name, self._record.recipe, plan, self._artifacts, registry, state)
        except InvalidInput as error:
            log.info("%s", error)
        except SfumatoError as error:
            log.warning("The models of %s are not registered: %s Register them: sfumato models register %s", self._name, error, self._name)

    def _stop(self) -> Stopped:
        return Stopped(f"The run {self._name} was stopped.")

    def _check(self) -> None:
        if self._stopped:
            raise self._stop()

    def _disconnect(self) -> None:
        with self._lock:
            self._transport = None


class TracedTransport:
    """A transport that adds traces and the run's log context to tasks, and counts them."""

    def __init__(self, transport: InterruptibleTransport, execution: RunExecution, iteration: Callable[[], int]) -> None:
        self._transport, self._execution, self._iteration = transport, execution, iteration

    def prepare(self, services: Iterable[str]) -> None:
        """See `Transport`."""
        self._transport.prepare(services)

    def submit(self, task: Task, urgency: int = 0) -> None:
        """See `Transport`; in a separate span."""
        with bound(iteration=self._iteration(), stage=task.stage), tracer.start_as_current_span(f"orchestrator.{task.stage}"):
            self._transport.submit(task, urgency)
        self._execution.in_flight += 1

    def next(self) -> Manifest:
        """See `Transport`."""
        try:
            manifest = self._transport.next()
        except PoisonTask:
            self._execution.in_flight -= 1
            raise
        self._execution.in_flight -= 1
        return manifest

    def release(self, service: str) -> None:
        """See `Transport`."""
        self._transport.release(service)
