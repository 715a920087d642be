"""Runs a recipe: cuts samples into fixed micro-batches, sends their tasks, takes results in, opens the barriers, goes round.

It knows no method: a recipe is a sequence of `Each` (every micro-batch by itself, no waiting for the others), `Gather` (a barrier:
everything before must be there) and `Loop` stages. It holds nothing that the manifests do not hold as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from orchestrator.spool import Spool, batched
from orchestrator.transport import Transport
from sfumato.errors import PoisonTask, SfumatoError
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Manifest, Task, find

PlanT = TypeVar("PlanT")
SampleT = TypeVar("SampleT")


class Samples(Protocol[SampleT]):
    """A recipe's state: its samples, and whatever the barriers add."""

    @property
    def samples(self) -> Sequence[SampleT]:
        """In the order of the prompts."""
        ...

    def with_samples(self: StateT, samples: Sequence[SampleT]) -> StateT:
        """A copy with other samples."""
        ...


StateT = TypeVar("StateT", bound=Samples)


@dataclass(frozen=True, slots=True)
class Each(Generic[PlanT, StateT, SampleT]):
    """A stage that a micro-batch passes alone. ``task`` returns None when the batch has nothing to do in it.

    ``task`` sees the state as it was at the last barrier. When a task was set aside after several tries (`PoisonTask`), its
    micro-batch leaves, as what ``without`` makes of its samples and of the reason; where there is no ``without``, the run ends.
    """

    name: str
    service: str
    task: Callable[[PlanT, StateT, tuple[SampleT, ...]], Task | None]
    absorb: Callable[[tuple[SampleT, ...], Manifest], tuple[SampleT, ...]]
    without: Callable[[tuple[SampleT, ...], str], tuple[SampleT, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Gather(Generic[PlanT, StateT]):
    """A stage behind a barrier: its tasks are independent of each other; without tasks it only decides.

    Tasks of a stage ``by_person`` are nobody's but a person's: the run waits for their manifests (see `Waiting`). ``without`` is what
    stands for a task that was set aside, for this reason; where there is none, the run ends.
    """

    name: str
    tasks: Callable[[PlanT, StateT], list[Task]]
    absorb: Callable[[PlanT, StateT, list[Manifest]], StateT]
    by_person: bool = False
    without: Callable[[Task, str], Manifest] | None = None


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
    set_aside: int
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
    """What every stage of one run needs: the plan, samples in a micro-batch, workers, the store, and who watches.

    ``notify`` may raise to stop the run, as may the transport; what is finished is kept. ``at_once`` micro-batches are on their way at
    the same time.
    """

    plan: PlanT
    batch: int
    transport: Transport
    artifacts: ArtifactStore
    notify: Notify
    at_once: int = 512

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
        reused, set_aside, total = len(found), 0, len({task.id for task in tasks})
        missing = {task.id: task for task in tasks if task.id not in found}
        if missing and stage.by_person:
            raise Waiting(tuple(missing.values()), state)
        for task in missing.values():
            self.transport.submit(task)
        if missing:
            self.notify(Progress(stage.name, reused, total, reused, 0, state))
        while len(found) < total:
            try:
                manifest = self.transport.next()
            except PoisonTask as error:
                if stage.without is None or error.task_id not in missing:
                    raise
                manifest, set_aside = stage.without(missing[error.task_id], error.message), set_aside + 1
            found[manifest.task_id] = manifest
            if len(found) < total:
                self.notify(Progress(stage.name, len(found), total, reused, set_aside, state))
        state = stage.absorb(self.plan, state, [found[task.id] for task in tasks])
        self.notify(Progress(stage.name, total, total, reused, set_aside, state))
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
    set_aside: int = 0


@dataclass(slots=True)
class _Flow(Generic[PlanT, StateT, SampleT]):
    """Micro-batches on their way through consecutive `Each` stages, every one at its own pace, so many at a time.

    What has not begun is not read yet and what is through is in a file: the flow takes the same memory however many samples there are.
    """

    engine: Engine[PlanT]
    stages: tuple[Each[PlanT, StateT, SampleT], ...]
    state: StateT
    through: Spool[SampleT] = field(init=False)
    total: int = field(init=False)
    counts: list[_Count] = field(init=False)
    # The first stage that anything was sent to: from there on, services are needed.
    first: int = field(init=False)
    open: int = 0
    waiting: dict[str, list[_Batch[SampleT]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.through = Spool(self.engine.batch)
        self.total = -(-len(self.state.samples) // self.engine.batch)
        self.counts = [_Count() for _ in self.stages]
        self.first = len(self.stages)

    def run(self) -> StateT:
        """Every batch through every stage; the samples in their order."""
        for index, samples in enumerate(batched(self.state.samples, self.engine.batch)):
            self.open += 1
            self._go_on(_Batch(index, samples))
            while self.open == self.engine.at_once:
                self._receive()
        while self.open:
            self._receive()
        for service in {stage.service for stage in self.stages if self.first < len(self.stages)}:
            self.engine.transport.release(service)
        return self.state.with_samples(self.through)

    def _go_on(self, batch: _Batch[SampleT]) -> None:
        """Carry a batch over what is done already or nothing to do, to its next task or to the end."""
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
        self.through.put(batch.index, batch.samples)
        self.open -= 1

    def _send(self, batch: _Batch[SampleT], task: Task) -> None:
        if batch.position < self.first:
            self.first = batch.position
            self.engine.transport.prepare(dict.fromkeys(stage.service for stage in self.stages[self.first :]))
        waiting = self.waiting.setdefault(task.id, [])
        waiting.append(batch)
        if len(waiting) == 1:
            self.engine.transport.submit(task, urgency=batch.position)

    def _receive(self) -> None:
        """Wait for a task, and let the batches that needed it go on; or leave, where it was set aside."""
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
            self._go_on(batch)

    def _leave(self, batch: _Batch[SampleT], error: PoisonTask) -> None:
        without = self.stages[batch.position].without
        if without is None:
            raise error
        self.counts[batch.position].set_aside += 1
        batch.samples = without(batch.samples, error.message)
        while batch.position < len(self.stages):
            self._pass(batch)
        self._go_on(batch)

    def _pass(self, batch: _Batch[SampleT]) -> None:
        name, count = self.stages[batch.position].name, self.counts[batch.position]
        batch.position += 1
        count.passed += 1
        self.engine.notify(Progress(name, count.passed, self.total, count.reused, count.set_aside, self.state, batch.samples))
