"""The definition of a method. A recipe holds data and pure functions; the engine, the transports and the callers only use these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from orchestrator.engine.stages import Barrier, Loop, PerBatch, Samples, Stage, steps
from orchestrator.recipes.inputs import Input
from orchestrator.recipes.lineage import Product
from orchestrator.recipes.models import Needed
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.spec import RunSpec
from orchestrator.recipes.work import Costs
from sfumato.export.card import MethodCard
from sfumato.runs.records import DeadLettered, ShownPicture
from sfumato.runtime.artifacts import ArtifactStore

SpecT = TypeVar("SpecT", bound=RunSpec)
StateT = TypeVar("StateT", bound=Samples)
SampleT = TypeVar("SampleT")


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The end of a finished run: why it stopped, after how many iterations, and its losses to dead letters."""

    stop_reason: str
    iterations: int
    dead_lettered: tuple[DeadLettered, ...] = ()


def no_pictures(_: Any) -> tuple[ShownPicture, ...]:
    """For methods whose samples have no pictures to show."""
    return ()


def no_review(_: Any) -> str:
    """For methods without a human review."""
    return "its method has none"


@dataclass(frozen=True, slots=True)
class Recipe(Generic[SpecT, StateT, SampleT]):
    """A method.

    Attributes:
        name: the value of ``recipe:`` in a spec.
        spec: the type of its specs.
        inputs: the sets of prompts that it reads.
        models: the weights that a spec needs.
        stages: in the order in which a sample passes them; they carry their tasks, reports and costs.
        start: the state at the beginning of a run.
        conclude: how a run ended, from its last state.
        files: the files of a finished run by name, the same bytes for the same results. ``report.html`` and ``report.json`` are among
            them; ``report.json`` is an object that names the recipe.
        headline: the main results of a finished run for scripts, from its ``report.json``.
        costs: the estimated cost of a run of a spec.
        products: the models of a finished run, each with its lineage, the last one last. Empty: nothing to register.
        shown: the pictures that a sample can show while a run is under way; empty if it has none yet.
        review: why runs of a spec have no human review; empty if they have one.
        card: the texts about the method in the model card of an exported model.
    """

    name: str
    spec: type[SpecT]
    inputs: tuple[Input, ...]
    models: Callable[[SpecT], tuple[Needed, ...]]
    stages: Sequence[Stage]
    start: Callable[[Plan[SpecT]], StateT]
    conclude: Callable[[StateT], Conclusion]
    files: Callable[[Plan[SpecT], StateT, ArtifactStore], dict[str, bytes]]
    costs: Callable[[SpecT], Costs]
    headline: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    products: Callable[[str, Plan[SpecT], StateT, Mapping[str, str]], Sequence[Product]] = field(default=lambda *_: ())
    shown: Callable[[SampleT], tuple[ShownPicture, ...]] = no_pictures
    review: Callable[[SpecT], str] = no_review
    card: MethodCard | None = None

    @property
    def services(self) -> tuple[str, ...]:
        """The services that its stages send tasks to, in the order of the stages."""
        return tuple(dict.fromkeys(service for stage in self.steps for service in stage.services))

    @property
    def steps(self) -> list[PerBatch | Barrier]:
        """Its stages without the loops and phases around them."""
        return steps(self.stages)

    @property
    def loops(self) -> list[Loop]:
        """Its outermost loops."""
        return [stage for stage in self.stages if isinstance(stage, Loop)]
