"""What a recipe is made of: stages in the order in which a sample passes them, loops and phases around them.

A stage holds its tasks, the handling of their results, its reports and its costs. So no code outside a recipe depends on the name of a
stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from sfumato.errors import SfumatoError
from sfumato.runs.records import Question
from sfumato.runtime.tasks import Json, Manifest, Task

PlanT = TypeVar("PlanT")
SampleT = TypeVar("SampleT")


class Samples(Protocol[SampleT]):
    """The state of a run: its samples, and the data that barriers add."""

    @property
    def samples(self) -> Sequence[SampleT]:
        """In the order of the prompts."""
        ...

    def with_samples(self: StateT, samples: Sequence[SampleT]) -> StateT:
        """A copy with other samples."""
        ...


StateT = TypeVar("StateT", bound=Samples)


@dataclass(frozen=True, slots=True)
class Tells(Generic[StateT, SampleT]):
    """What a stage reports once it is finished, as pure functions.

    ``sums`` and ``means`` are numbers by name, taken of each sample that passes a per-batch stage (None: the sample does not count).
    ``metrics`` are numbers of the state. ``note`` is the text beside the stage's progress, given its metrics. ``outcome`` is the
    summary of an iteration in one line, for the stage that ends it.
    """

    sums: Mapping[str, Callable[[SampleT], int]] = field(default_factory=dict)
    means: Mapping[str, Callable[[SampleT], float | None]] = field(default_factory=dict)
    metrics: Callable[[StateT], Mapping[str, Json]] | None = None
    note: Callable[[Mapping[str, Json], StateT], str] | None = None
    outcome: Callable[[StateT], str] | None = None


NOTHING: Tells[Any, Any] = Tells()


@dataclass(frozen=True, slots=True)
class PerBatch(Generic[PlanT, StateT, SampleT]):
    """A stage that each micro-batch passes without waiting for the others. ``task`` returns None when a batch has nothing to do in it.

    ``task`` sees the state as it was at the last barrier. When a task became a dead letter (`PoisonTask`), its micro-batch leaves the
    flow as the result of ``on_dead_letter`` of its samples and the reason; without ``on_dead_letter`` the run ends with the error.

    ``tells`` is what the stage reports, ``work`` what it costs (`orchestrator.recipes.work`).
    """

    name: str
    service: str
    task: Callable[[PlanT, StateT, tuple[SampleT, ...]], Task | None]
    absorb: Callable[[tuple[SampleT, ...], Manifest], tuple[SampleT, ...]]
    on_dead_letter: Callable[[tuple[SampleT, ...], str], tuple[SampleT, ...]] | None = None
    _: KW_ONLY
    tells: Tells[Any, Any] = NOTHING
    work: Callable[[Any], Any] | None = None

    @property
    def services(self) -> tuple[str, ...]:
        """The service that its tasks are for."""
        return (self.service,)


@dataclass(frozen=True, slots=True)
class Barrier(Generic[PlanT, StateT]):
    """A stage that begins when everything before it is finished; its tasks are independent. Without tasks it only decides.

    ``services`` are those that its tasks are for. A stage with ``asks`` is answered by a person: the run stops with `Waiting` until the
    manifests of its tasks are in the store, and ``asks`` turns such tasks into questions. ``on_dead_letter`` gives the manifest that
    stands for a task that became a dead letter; without it the run ends with the error.
    """

    name: str
    tasks: Callable[[PlanT, StateT], list[Task]]
    absorb: Callable[[PlanT, StateT, list[Manifest]], StateT]
    on_dead_letter: Callable[[Task, str], Manifest] | None = None
    _: KW_ONLY
    services: tuple[str, ...] = ()
    asks: Callable[[StateT, Sequence[Task]], list[Question]] | None = None
    tells: Tells[Any, Any] = NOTHING
    work: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Loop(Generic[PlanT, StateT]):
    """Stages that are repeated while ``again`` is true, at least once; ``most`` is the largest number of iterations.

    ``name`` is the name of an iteration: progress of the n-th is reported as phase ``name``, iteration n.
    """

    name: str
    stages: Sequence[Stage]
    again: Callable[[PlanT, StateT], bool]
    most: Callable[[Any], int]


@dataclass(frozen=True, slots=True)
class Phase:
    """Stages that are passed once, and reported as the phase ``name``."""

    name: str
    stages: Sequence[Stage]


Stage: TypeAlias = PerBatch | Barrier | Loop | Phase


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is, counted in tasks, or in micro-batches where they pass it one by one.

    ``phase`` and ``iteration`` (0 outside of a loop) identify the pass of the stage. ``state`` is the run's state after the last
    barrier, ``samples`` the micro-batch that has just passed the stage.
    """

    stage: PerBatch | Barrier
    phase: str
    iteration: int
    done: int
    total: int
    reused: int
    dead_lettered: int
    state: Samples
    samples: Sequence[Any] = ()

    @property
    def whole(self) -> bool:
        """Whether the stage is finished."""
        return self.done == self.total


class Waiting(SfumatoError):
    """The run cannot continue until a person has answered ``tasks`` of ``stage``; ``state`` is the run's state before them."""

    def __init__(self, stage: Barrier, tasks: Sequence[Task], state: Samples, phase: str, iteration: int) -> None:
        super().__init__(f"{len(tasks)} tasks wait for a person.")
        self.stage, self.state = stage, state
        self.tasks = tuple(tasks)
        self.phase, self.iteration = phase, iteration


def steps(stages: Sequence[Stage]) -> list[PerBatch | Barrier]:
    """All stages in their order, without the loops and phases around them; each occurrence once."""
    found: list[PerBatch | Barrier] = []
    for stage in stages:
        found += steps(stage.stages) if isinstance(stage, Loop | Phase) else [stage]
    return found
