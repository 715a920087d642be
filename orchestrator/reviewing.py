"""Which pairs of a run wait for a person, and what a person says of them. It needs the run's plan and its artifacts, nothing that runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.engine import Engine, Progress, Waiting
from orchestrator.recipes import artaug
from orchestrator.recipes.artaug import Plan, Sample, State
from sfumato.errors import InvalidInput, SfumatoError
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.versions import libraries
from sfumato.runtime.tasks import Manifest, Output, Task, perform


@dataclass(frozen=True, slots=True)
class Pair:
    """What a person is asked about: the task that waits for the answer, and the sample it is about."""

    task: Task
    sample: Sample
    iteration: int


def waiting_pairs(plan: Plan, name: str, artifacts: ArtifactStore) -> list[Pair]:
    """The pairs that wait for a person, in the order of the prompts; none where all of them are answered.

    The run is gone through once more over what it has stored; nothing is computed.

    Raises:
        InvalidInput: the run does not ask people.
        SfumatoError: it has not come so far yet.
    """
    policy = plan.spec.filter.review
    if "human" not in policy:
        hint = "Write filter.review: human (or vlm+human) in the spec and run that."
        raise InvalidInput("run", f"{name} asks nobody: its review is {policy!r}.", hint=hint)
    answered = False

    def watch(event: Progress) -> None:
        nonlocal answered
        if event.done == event.total and event.stage in ("show", "finish"):
            answered = event.stage == "show" and event.total > 0

    try:
        Engine(plan, plan.spec.batch, _Standstill(), artifacts, watch).run(artaug.STAGES, artaug.start(plan))
    except Waiting as waiting:
        state: State = waiting.state  # pyright: ignore[reportAssignmentType]
        samples = {(s.before.picture, s.after.picture): s for s in state.samples if s.before and s.after}
        return [Pair(task, samples[_names(task)], len(state.iterations) + 1) for task in waiting.tasks]
    except _NotDone:
        if not answered:
            hint = f"Let it go on: sfumato run --resume {name}"
            raise SfumatoError(f"The run {name} has not come to the review yet.", hint=hint) from None
    return []


def answer(task: Task, artifacts: ArtifactStore, accepted: bool, reason: str = "") -> Manifest:
    """Store what a person says of a pair; an answer that is there already stays."""
    return perform(task, lambda _, __: Output([{"accepted": accepted, "reason": reason}]), artifacts, libraries())


class _NotDone(Exception):
    """The run has work to do before anybody is asked."""


class _Standstill:
    """A transport that takes no task: what is not in the store already is the end of the way."""

    def prepare(self, services: Iterable[str]) -> None:
        raise _NotDone

    def submit(self, task: Task, urgency: int = 0) -> None:
        raise _NotDone

    def next(self) -> Manifest:
        raise _NotDone

    def release(self, service: str) -> None:
        """Nothing was started."""


def _names(task: Task) -> tuple[str, str]:
    return task.items[0]["a"], task.items[0]["b"]
