"""A method as a third party would add one: paint, score, train on the most beautiful picture, and again on the trained model.

It is one folder, and it is installed by an entry point; no file of sfumato names it. `tests/integration/test_new_method.py` copies it into
a temporary folder and runs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from orchestrator.engine.stages import Barrier, Loop, PerBatch, Tells
from orchestrator.recipes.inputs import Input
from orchestrator.recipes.lineage import LineageGraph, Product
from orchestrator.recipes.models import GeneratorModel, ScorerModels
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.recipe import Conclusion, Recipe
from orchestrator.recipes.spec import Paint, Prompts, RunSpec, Score
from orchestrator.recipes.tasks import Painted, paint, painted, score, training
from orchestrator.recipes.work import STEP, Cost, Memory, Work, generator_memory, scoring_memory
from sfumato.registry.records import Base, Lineage, Node, Version, WeightedAdapter, version_id
from sfumato.runs.records import ShownPicture
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.sizes import ModelSize
from sfumato.runtime.tasks import Manifest, Task


class BrightestSpec(RunSpec):
    """A spec of this method."""

    recipe: Literal["brightest"] = "brightest"  # pyright: ignore[reportIncompatibleVariableOverride]
    prompts: Prompts
    paint: Paint = Paint()
    score: Score = Score(metrics=("clip", "aesthetic"))
    steps: int = Field(default=2, ge=1, le=1000)
    iterations: int = Field(default=2, ge=1, le=8)


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt on its way."""

    prompt: str
    seed: int
    picture: Painted | None = None
    aesthetic: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """The run so far: the samples of this iteration, and the adapter and best score of every former one."""

    samples: Sequence[Sample]
    adapters: tuple[str, ...] = ()
    best: tuple[float, ...] = ()

    def with_samples(self, samples: Sequence[Sample]) -> State:
        """A copy with other samples."""
        return replace(self, samples=samples)


PlanOf = Plan[BrightestSpec]


def _fresh(plan: PlanOf) -> tuple[Sample, ...]:
    return tuple(Sample(prompt, plan.spec.prompts.seed + index) for index, prompt in enumerate(plan.inputs["scenes"]))


def _start(plan: PlanOf) -> State:
    return State(_fresh(plan))


def _paint(plan: PlanOf, state: State, samples: tuple[Sample, ...]) -> Task:
    rows = [(sample.prompt, sample.seed, ()) for sample in samples]
    return paint(plan, "paint", rows, state.adapters[-1] if state.adapters else "")


def _absorb_painted(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    return tuple(replace(sample, picture=picture) for sample, picture in zip(samples, painted(done), strict=True))


def _score(plan: PlanOf, _: State, samples: tuple[Sample, ...]) -> Task:
    pictures = [(sample.prompt, sample.picture.picture) for sample in samples if sample.picture]
    return score(plan, "score", pictures, plan.spec.score.metrics)


def _absorb_scored(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    return tuple(replace(sample, aesthetic=value["aesthetic"]) for sample, value in zip(samples, done.values, strict=True))


def _best(state: State) -> Sample:
    return max(state.samples, key=lambda sample: (sample.aesthetic, -sample.seed))


def _train(plan: PlanOf, state: State) -> list[Task]:
    best, size = _best(state), plan.spec.paint.model_dump(include={"guidance", "width", "height"})
    assert best.picture is not None
    latents = best.picture.latents
    params = {"rank": 4, "learning_rate": 1e-3, "batch": 1, "steps_before": plan.spec.steps, "steps_after": plan.spec.steps}
    params |= size | {"adapter": "", "objective": "naive"}
    items = ({"prompt": best.prompt, "seed": best.seed, "before": latents, "after": latents},)
    return [training(plan, "train", "train", items, params)]


def _absorb_trained(plan: PlanOf, state: State, done: list[Manifest]) -> State:
    adapter = done[0].files["0.safetensors"]
    return State(_fresh(plan), (*state.adapters, adapter), (*state.best, _best(state).aesthetic))


def _again(plan: PlanOf, state: State) -> bool:
    return len(state.adapters) < plan.spec.iterations


def _conclude(state: State) -> Conclusion:
    return Conclusion("all iterations are done", len(state.adapters))


def _files(plan: PlanOf, state: State, artifacts: ArtifactStore) -> dict[str, bytes]:
    figures = {"recipe": plan.spec.recipe, "best": list(state.best), "prompts": list(plan.inputs["scenes"])}
    rows = "".join(f"<li>iteration {index}: {best:.3f}</li>" for index, best in enumerate(state.best, 1))
    return {
        "adapter.safetensors": artifacts.get(state.adapters[-1]),
        "report.json": (json.dumps(figures, sort_keys=True) + "\n").encode(),
        "report.html": f"<!doctype html><title>brightest</title><ol>{rows}</ol>\n".encode(),
    }


def _products(name: str, plan: PlanOf, state: State, libraries: Mapping[str, str]) -> Sequence[Product]:
    run = Node.about("run", id=name, recipe=plan.spec.recipe, libraries=dict(libraries))

    def lineage(adapter: str, base: Base, parent: Version) -> Lineage:
        graph = LineageGraph()
        version = Node("version", version_id(base.id, (WeightedAdapter(adapter),)))
        graph.add(version, "made_by", run)
        graph.add(version, "follows", Node("version", parent.id))
        return graph.lineage()

    return [
        Product(adapter, f"{name}, iteration {index}", {"best": best}, lambda base, parent, a=adapter: lineage(a, base, parent))
        for index, (adapter, best) in enumerate(zip(state.adapters, state.best, strict=True), 1)
    ]


def _shown(sample: Sample) -> tuple[ShownPicture, ...]:
    return (ShownPicture(caption=sample.prompt, digest=sample.picture.picture),) if sample.picture else ()


class Costs:
    """See `orchestrator.recipes.work.Costs`."""

    def __init__(self, spec: BrightestSpec) -> None:
        self.spec, self.tasks = spec, -(-spec.prompts.count // spec.batch)

    def rows(self, painter: ModelSize | None) -> int:
        """One row a picture."""
        return 1

    def counts(self, rows: int, regions: int) -> Costs:
        """Itself: no stage depends on advice."""
        return self

    def memory(self, models: Mapping[str, ModelSize | None], *, precision: int, rows: int, context: int, together: int) -> list[Memory]:
        """The generator and the scorers."""
        size = self.spec.paint.width, self.spec.paint.height
        return [generator_memory(models["generator"], size, precision=precision, rows=rows, batch=self.spec.batch), scoring_memory(models)]

    def painting(self) -> Cost:
        """Every prompt, in each iteration."""
        return Cost(each=Work(self.tasks, self.spec.prompts.count * self.spec.paint.steps))

    def scoring(self) -> Cost:
        """Every picture."""
        return Cost(each=Work(self.tasks, pictures=self.spec.prompts.count))

    def training(self) -> Cost:
        """One picture."""
        return Cost(each=Work(1, self.spec.steps * STEP))


STAGES = (
    Loop(
        "round",
        (
            PerBatch("paint", "generator", _paint, _absorb_painted, work=Costs.painting),
            PerBatch(
                "score",
                "scoring",
                _score,
                _absorb_scored,
                tells=Tells(means={"aesthetic": lambda sample: sample.aesthetic}),
                work=Costs.scoring,
            ),
            Barrier("train", _train, _absorb_trained, services=("trainer",), work=Costs.training),
        ),
        again=_again,
        most=lambda spec: spec.iterations,
    ),
)

RECIPE: Recipe[Any, Any, Any] = Recipe(
    name="brightest",
    spec=BrightestSpec,
    inputs=(Input("scenes", "prompts"),),
    models=lambda spec: (GeneratorModel(spec.model), ScorerModels(tuple(spec.score.metrics))),
    stages=STAGES,
    start=_start,
    conclude=_conclude,
    files=_files,
    costs=Costs,
    products=_products,
    shown=_shown,
)
