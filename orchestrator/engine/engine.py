"""Executes a recipe: cuts samples into fixed micro-batches, sends their tasks, takes results in, opens the barriers, repeats the loops.

It knows no method. It keeps nothing that the manifests do not hold as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic

from orchestrator.engine.rows import RowFile, batched
from orchestrator.engine.stages import Barrier, Loop, PerBatch, Phase, PlanT, Progress, SampleT, Stage, StateT, Waiting
from orchestrator.engine.transport import Transport
from sfumato.errors import PoisonTask
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Task, find

Notify = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Section:
    """A pass through some stages: the phase's name, and the iteration where it is a loop (else 0)."""

    phase: str = ""
    iteration: int = 0


@dataclass(slots=True)
class Engine(Generic[PlanT]):
    """What every stage of one run needs: the plan, the number of samples in a micro-batch, the transport, the store, and an observer.

    ``notify`` may raise to stop the run, as may the transport; what is finished is kept. ``at_once`` is the number of micro-batches that
    are under way at the same time.
    """

    plan: PlanT
    batch: int
    transport: Transport
    artifacts: ArtifactStore
    notify: Notify
    at_once: int = 512
    # Services that tasks were sent to and that were not released since.
    resident: set[str] = field(default_factory=set)

    def run(self, stages: Sequence[Stage], state: StateT) -> StateT:
        """Pass the stages in order; tasks whose manifests exist are not done again.

        Raises:
            Waiting: a person has to decide something first.
            SfumatoError: a task failed. What was finished is kept, and a run of the same plan continues there.
        """
        return self._pass(stages, state, Section())

    def need(self, services: Iterable[str]) -> None:
        """Prepare services, and release all others: a device may hold one of them only."""
        needed = dict.fromkeys(services)
        for service in sorted(self.resident.difference(needed)):
            self.transport.release(service)
        self.transport.prepare(needed)
        self.resident = set(needed)

    def _pass(self, stages: Sequence[Stage], state: StateT, section: Section) -> StateT:
        for per_batch, group in groupby(stages, key=lambda stage: isinstance(stage, PerBatch)):
            if per_batch:
                flow = tuple(stage for stage in group if isinstance(stage, PerBatch))
                state = _Flow(self, flow, state, section).run()
                continue
            for stage in group:
                if isinstance(stage, Loop):
                    iteration, again = 0, True
                    while again:
                        iteration += 1
                        state = self._pass(stage.stages, state, Section(stage.name, iteration))
                        again = stage.again(self.plan, state)
                elif isinstance(stage, Phase):
                    state = self._pass(stage.stages, state, Section(stage.name))
                elif isinstance(stage, Barrier):
                    state = self._open(stage, state, section)
        return state

    def _open(self, stage: Barrier[PlanT, StateT], state: StateT, section: Section) -> StateT:
        """Do the tasks of a barrier, and absorb their results in the order of the tasks."""
        tasks = stage.tasks(self.plan, state)
        found = {task.id: manifest for task in tasks if (manifest := find(task, self.artifacts)) is not None}
        reused, dead_lettered, total = len(found), 0, len({task.id for task in tasks})
        missing = {task.id: task for task in tasks if task.id not in found}
        if missing and stage.asks is not None:
            raise Waiting(stage, tuple(missing.values()), state, section.phase, section.iteration)

        def notify(done: int) -> None:
            self.notify(Progress(stage, section.phase, section.iteration, done, total, reused, dead_lettered, state))

        if missing:
            self.need(task.service for task in missing.values())
        for task in missing.values():
            self.transport.submit(task)
        if missing:
            notify(reused)
        while len(found) < total:
            try:
                manifest = self.transport.next()
            except PoisonTask as error:
                if stage.on_dead_letter is None or error.task_id not in missing:
                    raise
                manifest, dead_lettered = stage.on_dead_letter(missing[error.task_id], error.message), dead_lettered + 1
            found[manifest.task_id] = manifest
            if len(found) < total:
                notify(len(found))
        state = stage.absorb(self.plan, state, [found[task.id] for task in tasks])
        notify(total)
        return state


@dataclass(slots=True)
class _Batch(Generic[SampleT]):
    """A micro-batch, its place among the others, and the stage it stands before."""

    index: int
    samples: tuple[SampleT, ...]
    position: int = 0


@dataclass(slots=True)
class _Count:
    passed: int = 0
    reused: int = 0
    dead_lettered: int = 0


@dataclass(slots=True)
class _Flow(Generic[PlanT, StateT, SampleT]):
    """Micro-batches on their way through consecutive `PerBatch` stages, each at its own pace, a limited number at a time.

    Batches that have not begun are not read yet, and batches that have passed are in a file: the flow takes the same memory for any
    number of samples.
    """

    engine: Engine[PlanT]
    stages: tuple[PerBatch[PlanT, StateT, SampleT], ...]
    state: StateT
    section: Section
    passed: RowFile[SampleT] = field(init=False)
    total: int = field(init=False)
    counts: list[_Count] = field(init=False)
    # The first stage that a task was sent for: from there on, services are needed.
    first: int = field(init=False)
    open: int = 0
    waiting: dict[str, list[_Batch[SampleT]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.passed = RowFile(self.engine.batch)
        self.total = -(-len(self.state.samples) // self.engine.batch)
        self.counts = [_Count() for _ in self.stages]
        self.first = len(self.stages)

    def run(self) -> StateT:
        """Every batch through every stage; the samples in their order."""
        for index, samples in enumerate(batched(self.state.samples, self.engine.batch)):
            self.open += 1
            self._advance(_Batch(index, samples))
            while self.open == self.engine.at_once:
                self._receive()
        while self.open:
            self._receive()
        return self.state.with_samples(self.passed)

    def _advance(self, batch: _Batch[SampleT]) -> None:
        """Carry a batch over stages that are done already or have nothing to do, to its next task or to the end."""
        while batch.position < len(self.stages):
            task = self.stages[batch.position].task(self.engine.plan, self.state, batch.samples)
            if task is not None:
                manifest = find(task, self.engine.artifacts)
                if manifest is None:
                    self._send(batch, task)
                    return
                self.counts[batch.position].reused += 1
                batch.samples = self.stages[batch.position].absorb(batch.samples, manifest)
            self._pass(batch)
        self.passed.put(batch.index, batch.samples)
        self.open -= 1

    def _send(self, batch: _Batch[SampleT], task: Task) -> None:
        if batch.position < self.first:
            self.first = batch.position
            self.engine.need([stage.service for stage in self.stages[self.first :]])
        waiting = self.waiting.setdefault(task.id, [])
        waiting.append(batch)
        if len(waiting) == 1:
            self.engine.transport.submit(task, urgency=batch.position)

    def _receive(self) -> None:
        """Wait for a task, and advance the batches that needed it; a dead letter makes them leave."""
        try:
            manifest = self.engine.transport.next()
        except PoisonTask as error:
            if error.task_id not in self.waiting:
                raise
            for batch in self.waiting.pop(error.task_id):
                self._leave(batch, error)
            return
        for batch in self.waiting.pop(manifest.task_id, ()):
            batch.samples = self.stages[batch.position].absorb(batch.samples, manifest)
            self._pass(batch)
            self._advance(batch)

    def _leave(self, batch: _Batch[SampleT], error: PoisonTask) -> None:
        on_dead_letter = self.stages[batch.position].on_dead_letter
        if on_dead_letter is None:
            raise error
        self.counts[batch.position].dead_lettered += 1
        batch.samples = on_dead_letter(batch.samples, error.message)
        while batch.position < len(self.stages):
            self._pass(batch)
        self._advance(batch)

    def _pass(self, batch: _Batch[SampleT]) -> None:
        stage, count = self.stages[batch.position], self.counts[batch.position]
        batch.position += 1
        count.passed += 1
        phase, iteration = self.section.phase, self.section.iteration
        numbers = count.passed, self.total, count.reused, count.dead_lettered
        self.engine.notify(Progress(stage, phase, iteration, *numbers, self.state, batch.samples))
