"""Runs a recipe: cuts samples into fixed micro-batches, sends their tasks, takes results in, opens the barriers, goes round.

It knows no method: a recipe is a sequence of `Each` (every micro-batch by itself, no waiting for the others), `Gather` (a barrier:
everything before must be there) and `Loop` stages. It holds nothing that the manifests do not hold as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from orchestrator.transport import Transport
from sfumato.errors import SfumatoError
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Manifest, Task, find

PlanT = TypeVar("PlanT")
SampleT = TypeVar("SampleT")


class Samples(Protocol[SampleT]):
    """A recipe's state: its samples, and whatever the barriers add."""

    @property
    def samples(self) -> tuple[SampleT, ...]:
        """In the order of the prompts."""
        ...

    def with_samples(self: StateT, samples: tuple[SampleT, ...]) -> StateT:
        """A copy with other samples."""
        ...


StateT = TypeVar("StateT", bound=Samples)


@dataclass(frozen=True, slots=True)
class Each(Generic[PlanT, StateT, SampleT]):
    """A stage that a micro-batch passes alone. ``task`` returns None when the batch has nothing to do in it.

    ``task`` sees the state as it was at the last barrier.
    """

    name: str
    service: str
    task: Callable[[PlanT, StateT, tuple[SampleT, ...]], Task | None]
    absorb: Callable[[tuple[SampleT, ...], Manifest], tuple[SampleT, ...]]


@dataclass(frozen=True, slots=True)
class Gather(Generic[PlanT, StateT]):
    """A stage behind a barrier: its tasks are independent of each other; without tasks it only decides.

    Tasks of a stage ``by_person`` are nobody's but a person's: the run waits for their manifests (see `Waiting`).
    """

    name: str
    tasks: Callable[[PlanT, StateT], list[Task]]
    absorb: Callable[[PlanT, StateT, list[Manifest]], StateT]
    by_person: bool = False


@dataclass(frozen=True, slots=True)
class Loop(Generic[PlanT, StateT]):
    """Stages that are passed again as long as ``again`` says so; at least once."""

    stages: Sequence[Stage]
    again: Callable[[PlanT, StateT], bool]


Stage: TypeAlias = Each | Gather | Loop


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a stage stands, counted in tasks, or in micro-batches where they pass it alone.

    ``state`` is the run as it was when the last barrier opened, ``samples`` the micro-batch that passed the stage just now.
    """

    stage: str
    done: int
    total: int
    reused: int
    state: Samples
    samples: Sequence[Any] = ()


Notify = Callable[[Progress], None]


class Waiting(SfumatoError):
    """The run can go no further until a person has done these tasks; ``state`` is the run as it stands before them."""

    def __init__(self, tasks: Sequence[Task], state: Samples) -> None:
        super().__init__(f"{len(tasks)} tasks wait for a person.")
        self.tasks = tuple(tasks)
        self.state = state


@dataclass(frozen=True, slots=True)
class Engine(Generic[PlanT]):
    """What every stage of one run needs: the plan, samples in a micro-batch, workers, the store, and who watches."""

    plan: PlanT
    batch: int
    transport: Transport
    artifacts: ArtifactStore
    notify: Notify

    def run(self, stages: Sequence[Stage], state: StateT) -> StateT:
        """Pass the stages in order; tasks whose manifests exist are not done again.

        Raises:
            Waiting: a person has to decide something first.
            SfumatoError: a task failed. What was finished is kept, and a run of the same plan continues there.
        """
        for each, group in groupby(stages, key=lambda stage: isinstance(stage, Each)):
            if each:
                flow = tuple(stage for stage in group if isinstance(stage, Each))
                state = _Flow(self, flow, state).run()
                continue
            for stage in group:
                if isinstance(stage, Loop):
                    state = self.run(stage.stages, state)
                    while stage.again(self.plan, state):
                        state = self.run(stage.stages, state)
                elif isinstance(stage, Gather):
                    state = self._gather(stage, state)
        return state

    def _gather(self, stage: Gather[PlanT, StateT], state: StateT) -> StateT:
        tasks = stage.tasks(self.plan, state)
        found = {task.id: manifest for task in tasks if (manifest := find(task, self.artifacts)) is not None}
        reused, total = len(found), len({task.id for task in tasks})
        missing = {task.id: task for task in tasks if task.id not in found}
        if missing and stage.by_person:
            raise Waiting(tuple(missing.values()), state)
        for task in missing.values():
            self.transport.submit(task)
        if missing:
            self.notify(Progress(stage.name, reused, total, reused, state))
        for _ in missing:
            manifest = self.transport.next()
            found[manifest.task_id] = manifest
            if len(found) < total:
                self.notify(Progress(stage.name, len(found), total, reused, state))
        state = stage.absorb(self.plan, state, [found[task.id] for task in tasks])
        self.notify(Progress(stage.name, total, total, reused, state))
        return state


@dataclass(slots=True)
class _Batch(Generic[SampleT]):
    """A micro-batch and the stage it stands before."""

    samples: tuple[SampleT, ...]
    position: int = 0


@dataclass(slots=True)
class _Count:
    passed: int = 0
    reused: int = 0


@dataclass(slots=True)
class _Flow(Generic[PlanT, StateT, SampleT]):
    """Micro-batches on their way through consecutive `Each` stages, every one at its own pace."""

    engine: Engine[PlanT]
    stages: tuple[Each[PlanT, StateT, SampleT], ...]
    state: StateT
    batches: list[_Batch[SampleT]] = field(init=False)
    counts: list[_Count] = field(init=False)
    waiting: dict[str, list[_Batch[SampleT]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        samples, size = self.state.samples, self.engine.batch
        self.batches = [_Batch(samples[start : start + size]) for start in range(0, len(samples), size)]
        self.counts = [_Count() for _ in self.stages]

    def run(self) -> StateT:
        """Every batch through every stage; the samples in their order."""
        transport = self.engine.transport
        open_tasks = [(batch, task) for batch in self.batches if (task := self._advance(batch)) is not None]
        if open_tasks:
            first = min(batch.position for batch, _ in open_tasks)
            transport.prepare(dict.fromkeys(stage.service for stage in self.stages[first:]))
        for batch, task in open_tasks:
            self._send(batch, task)
        while self.waiting:
            manifest = transport.next()
            for batch in self.waiting.pop(manifest.task_id):
                self._take(batch, manifest)
                task = self._advance(batch)
                if task is not None:
                    self._send(batch, task)
        for service in {stage.service for stage in self.stages if open_tasks}:
            transport.release(service)
        return self.state.with_samples(tuple(sample for batch in self.batches for sample in batch.samples))

    def _advance(self, batch: _Batch[SampleT]) -> Task | None:
        """Carry a batch over what is done already or nothing to do; its next open task, or None at the end."""
        while batch.position < len(self.stages):
            task = self.stages[batch.position].task(self.engine.plan, self.state, batch.samples)
            if task is None:
                self._pass(batch)
                continue
            manifest = find(task, self.engine.artifacts)
            if manifest is None:
                return task
            self.counts[batch.position].reused += 1
            self._take(batch, manifest)
        return None

    def _send(self, batch: _Batch[SampleT], task: Task) -> None:
        waiting = self.waiting.setdefault(task.id, [])
        waiting.append(batch)
        if len(waiting) == 1:
            self.engine.transport.submit(task, urgency=batch.position)

    def _take(self, batch: _Batch[SampleT], manifest: Manifest) -> None:
        batch.samples = self.stages[batch.position].absorb(batch.samples, manifest)
        self._pass(batch)

    def _pass(self, batch: _Batch[SampleT]) -> None:
        name, count = self.stages[batch.position].name, self.counts[batch.position]
        batch.position += 1
        count.passed += 1
        self.engine.notify(Progress(name, count.passed, len(self.batches), count.reused, self.state, batch.samples))
