"""One run, driven from its record to its outcome in a thread of its own: the engine over the bus, and what is told of it meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict

from orchestrator.engine import Engine
from orchestrator.events import COMPARISON, Event, Teller
from orchestrator.finishing import finish
from orchestrator.jetstream import JetStreamTransport
from orchestrator.recipes import artaug
from orchestrator.recipes.artaug import Plan, State
from orchestrator.recipes.artaug.state import set_aside
from orchestrator.registering import register_run
from orchestrator.runs import Outcome, Record, SetAside
from sfumato.errors import PoisonTask, SfumatoError
from sfumato.registry.client import RegistryClient
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Manifest, Task
from sfumato.runtime.telemetry import bound, incoming, tracer

log = logging.getLogger(__name__)


class Stopped(SfumatoError):
    """A run was told to stop where it is."""


class Course:
    """A run on its way. `stop` may be called from any thread, at any time."""

    def __init__(self, name: str, record: Record, bus: BusSettings, artifacts: ArtifactStore, registry: str = "") -> None:
        """``registry`` is the address of the registry that keeps the run's models in the end; empty for none."""
        self._registry = registry
        self._name, self._plan, self._trace, self._bus, self._artifacts = name, record.plan(), record.trace, bus, artifacts
        self._lock = threading.Lock()
        self._transport: JetStreamTransport | None = None
        self._stopped = False
        # Tasks that were sent and have not come back.
        self.in_flight = 0

    def stop(self) -> None:
        """Have `drive` end with `Stopped` as soon as it can; tasks that are under way are finished by their workers, and kept."""
        with self._lock:
            self._stopped = True
            if self._transport is not None:
                self._transport.interrupt(Stopped(f"The run {self._name} was told to stop."))

    def drive(self, tell: Callable[[Event], None]) -> Outcome:
        """Go through the recipe; what came of it, its files in the artifact store.

        Raises:
            Waiting: a person has to decide something first.
            Stopped: see `stop`.
            Unavailable: the bus or the store is away.
            SfumatoError: a task failed.
        """
        plan, teller, iteration = self._plan, Teller(), 1

        def notify(progress: object) -> None:
            nonlocal iteration
            event = teller.event(progress)  # pyright: ignore[reportArgumentType]
            iteration = event.iteration
            tell(event)
            self._check()

        with ExitStack() as stack:
            stack.enter_context(incoming(self._trace))
            stack.enter_context(bound(run=self._name))
            stack.enter_context(tracer.start_as_current_span("orchestrator.run"))
            transport = stack.enter_context(JetStreamTransport(self._bus, self._artifacts))
            with self._lock:
                self._transport = transport
            stack.callback(self._leave)
            self._check()
            steered = _Steered(transport, self, lambda: iteration)
            engine = Engine(plan, plan.spec.batch, steered, self._artifacts, notify)
            state = engine.run(artaug.STAGES, artaug.start(plan))
            files = finish(plan, state, self._artifacts)
            digests = {name: self._artifacts.put(data) for name, data in sorted(files.items())}
            self._register(plan, state)
            lost = tuple(SetAside(**asdict(lost)) for lost in set_aside(state))
            return Outcome(state="finished", stop_reason=state.stop_reason, files=digests, set_aside=lost)

    def _register(self, plan: Plan, state: State) -> None:
        """Have the registry keep the run's models. One that is away holds up nobody: the same can be done at any time."""
        if not self._registry or not state.fused:
            return
        try:
            with RegistryClient(self._registry) as registry:
                register_run(self._name, plan, self._artifacts, registry, state)
        except SfumatoError as error:
            log.warning("The models of %s are not registered: %s Do it later: sfumato models register %s", self._name, error, self._name)

    def _check(self) -> None:
        if self._stopped:
            raise Stopped(f"The run {self._name} was told to stop.")

    def _leave(self) -> None:
        with self._lock:
            self._transport = None


class _Steered:
    """A transport whose tasks carry the words of the log, and are counted."""

    def __init__(self, transport: JetStreamTransport, course: Course, iteration: Callable[[], int]) -> None:
        self._transport, self._course, self._iteration = transport, course, iteration

    def prepare(self, services: Iterable[str]) -> None:
        """As the transport's."""
        self._transport.prepare(services)

    def submit(self, task: Task, urgency: int = 0) -> None:
        """As the transport's, under a span of its own."""
        with bound(iteration=self._iteration(), stage=task.stage), tracer.start_as_current_span(f"orchestrator.{task.stage}"):
            self._transport.submit(task, urgency)
        self._course.in_flight += 1

    def next(self) -> Manifest:
        """As the transport's."""
        try:
            manifest = self._transport.next()
        except PoisonTask:
            self._course.in_flight -= 1
            raise
        self._course.in_flight -= 1
        return manifest

    def release(self, service: str) -> None:
        """As the transport's."""
        self._transport.release(service)


class Board:
    """The latest event of every stage of every iteration, written by the thread that drives and read by the one that publishes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: dict[int, dict[str, Event]] = {}
        self._new: set[int] = set()
        self.latest: Event | None = None

    def put(self, event: Event) -> None:
        """Take an event in; it replaces the stage's former one."""
        with self._lock:
            stages = self._stages.setdefault(event.iteration, {})
            stages.pop(event.stage, None)
            stages[event.stage] = event
            self._new.add(event.iteration)
            self.latest = event

    def take(self) -> dict[int, list[Event]]:
        """Iterations of which there is something new, with all their events; of pairs only the newest is worth its bytes."""
        with self._lock:
            taken = {iteration: list(self._stages[iteration].values()) for iteration in sorted(self._new, key=_order)}
            self._new.clear()
        return {iteration: _slim(events) for iteration, events in taken.items()}

    def again(self) -> None:
        """Count everything as new: what was published may be lost."""
        with self._lock:
            self._new.update(self._stages)


def _order(iteration: int) -> tuple[bool, int]:
    """The comparison, which has no number, comes last."""
    return iteration == COMPARISON, iteration


def _slim(events: list[Event]) -> list[Event]:
    newest = next((event for event in reversed(events) if event.pair is not None), None)
    return [event if event is newest or event.pair is None else event.model_copy(update={"pair": None}) for event in events]
