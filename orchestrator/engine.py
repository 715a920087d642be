"""Runs a recipe: cuts samples into fixed micro-batches, sends their tasks, takes results in, opens the barriers.

It knows no method: a recipe is a sequence of `Each` (every micro-batch by itself, no waiting for the others) and `Gather`
stages (a barrier: everything before must be there). It holds nothing that the manifests do not hold as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, Protocol, TypeVar

from orchestrator.transport import Transport
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
class Each(Generic[PlanT, SampleT]):
    """A stage that a micro-batch passes alone. ``task`` returns None when the batch has nothing to do in it."""

    name: str
    service: str
    task: Callable[[PlanT, tuple[SampleT, ...]], Task | None]
    absorb: Callable[[tuple[SampleT, ...], Manifest], tuple[SampleT, ...]]


@dataclass(frozen=True, slots=True)
class Gather(Generic[PlanT, StateT]):
    """A stage behind a barrier: its tasks are independent of each other; without tasks it only decides."""

    name: str
    tasks: Callable[[PlanT, StateT], list[Task]]
    absorb: Callable[[PlanT, StateT, list[Manifest]], StateT]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a stage stands, counted in tasks; ``state`` is the run so far, for whoever wants to show it."""

    stage: str
    done: int
    total: int
    reused: int
    samples: tuple[object, ...]


Notify = Callable[[Progress], None]


def run(
    stages: Sequence[Each | Gather], plan: PlanT, state: StateT, batch: int, transport: Transport, artifacts: ArtifactStore, notify: Notify
) -> StateT:
    """Run the stages in order; tasks whose manifests exist are not done again.

    Raises:
        SfumatoError: a task failed. What was finished is kept, and a run of the same plan continues there.
    """
    for each, group in groupby(stages, key=lambda stage: isinstance(stage, Each)):
        if each:
            flow = tuple(stage for stage in group if isinstance(stage, Each))
            state = state.with_samples(_Flow(flow, plan, state.samples, batch, transport, artifacts, notify).run())
        else:
            for stage in group:
                assert isinstance(stage, Gather)
                state = _gather(stage, plan, state, transport, artifacts, notify)
    return state


class _Flow(Generic[PlanT, SampleT]):
    """Micro-batches on their way through consecutive `Each` stages, every one at its own pace."""

    def __init__(
        self,
        stages: tuple[Each[PlanT, SampleT], ...],
        plan: PlanT,
        samples: tuple[SampleT, ...],
        batch: int,
        transport: Transport,
        artifacts: ArtifactStore,
        notify: Notify,
    ) -> None:
        self._stages, self._plan, self._transport, self._artifacts, self._notify = stages, plan, transport, artifacts, notify
        self._batches = [samples[start : start + batch] for start in range(0, len(samples), batch)]
        self._position = [0] * len(self._batches)
        self._reused = [0] * len(stages)
        self._passed = [0] * len(stages)
        self._waiting: dict[str, list[int]] = {}

    def run(self) -> tuple[SampleT, ...]:
        """Every batch through every stage; the samples in their order."""
        open_tasks = [(index, task) for index in range(len(self._batches)) if (task := self._advance(index)) is not None]
        if open_tasks:
            first = min(self._position[index] for index, _ in open_tasks)
            self._transport.prepare(dict.fromkeys(stage.service for stage in self._stages[first:]))
        for index, task in open_tasks:
            self._send(index, task)
        while self._waiting:
            manifest = self._transport.next()
            for index in self._waiting.pop(manifest.task_id):
                self._take(index, manifest)
                task = self._advance(index)
                if task is not None:
                    self._send(index, task)
        for service in {stage.service for stage in self._stages if open_tasks}:
            self._transport.release(service)
        return tuple(sample for samples in self._batches for sample in samples)

    def _advance(self, index: int) -> Task | None:
        """Carry a batch over what is done already or nothing to do; its next open task, or None at the end."""
        while self._position[index] < len(self._stages):
            position = self._position[index]
            task = self._stages[position].task(self._plan, self._batches[index])
            if task is None:
                self._pass(index)
                continue
            manifest = find(task, self._artifacts)
            if manifest is None:
                return task
            self._reused[position] += 1
            self._take(index, manifest)
        return None

    def _send(self, index: int, task: Task) -> None:
        waiting = self._waiting.setdefault(task.id, [])
        waiting.append(index)
        if len(waiting) == 1:
            self._transport.submit(task)

    def _take(self, index: int, manifest: Manifest) -> None:
        self._batches[index] = self._stages[self._position[index]].absorb(self._batches[index], manifest)
        self._pass(index)

    def _pass(self, index: int) -> None:
        position = self._position[index]
        self._position[index] += 1
        self._passed[position] += 1
        samples = tuple(sample for batch in self._batches for sample in batch)
        self._notify(Progress(self._stages[position].name, self._passed[position], len(self._batches), self._reused[position], samples))


def _gather(
    stage: Gather[PlanT, StateT], plan: PlanT, state: StateT, transport: Transport, artifacts: ArtifactStore, notify: Notify
) -> StateT:
    tasks = stage.tasks(plan, state)
    found = {task.id: manifest for task in tasks if (manifest := find(task, artifacts)) is not None}
    reused = len(found)
    total = len({task.id for task in tasks})
    missing = {task.id: task for task in tasks if task.id not in found}
    for task in missing.values():
        transport.submit(task)
    if missing:
        notify(Progress(stage.name, reused, total, reused, state.samples))
    for _ in missing:
        manifest = transport.next()
        found[manifest.task_id] = manifest
        notify(Progress(stage.name, len(found), total, reused, state.samples))
    state = stage.absorb(plan, state, [found[task.id] for task in tasks])
    notify(Progress(stage.name, total, total, reused, state.samples))
    return state
