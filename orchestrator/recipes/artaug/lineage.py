"""The models that an ArtAug run registers: one for every fused iteration, with a lineage back to its pairs and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.recipes.artaug.spec import INPUTS
from orchestrator.recipes.artaug.state import KEPT, ArtAugPlan, Iteration, Sample, State, TuningAttempt
from orchestrator.recipes.artaug.summary import mean
from orchestrator.recipes.lineage import LineageGraph, Product
from orchestrator.recipes.spec import nested_exclusion
from orchestrator.recipes.tasks import Painted
from sfumato.registry.records import Base, Lineage, Node, Version, WeightedAdapter, version_id


def products(name: str, plan: ArtAugPlan, state: State, libraries: Mapping[str, str]) -> Sequence[Product]:
    """The models of the fused iterations, in their order."""
    run = _run(name, plan, libraries)
    return [_product(run, name, iteration) for iteration in state.fused]


def _product(run: Node, name: str, iteration: Iteration) -> Product:
    assert iteration.attempt is not None
    adapter, note = iteration.attempt.stacked, f"{name}, iteration {iteration.index}"
    return Product(adapter, note, _metrics(iteration), lambda base, parent: _lineage(run, name, base, adapter, parent, iteration))


def _run(name: str, plan: ArtAugPlan, libraries: Mapping[str, str]) -> Node:
    """The node of the run: its spec, models, seeds and libraries."""
    spec = plan.spec
    places = nested_exclusion((wanted.section, wanted.key) for wanted in INPUTS)
    return Node.about(
        "run",
        id=name,
        recipe=spec.recipe,
        spec=spec.model_dump(mode="json", exclude=places),
        models={part: model.version for part, model in sorted(plan.models.items())},
        seeds={"prompts": spec.prompts.seed, "tune": spec.tune.seed if spec.tune else None, "evaluate": spec.evaluate.seed},
        libraries=dict(libraries),
    )


def _lineage(run: Node, name: str, base: Base, adapter: str, parent: Version, iteration: Iteration) -> Lineage:
    """The lineage of one iteration's model; ``parent`` is the previous version."""
    attempt, graph = iteration.attempt, LineageGraph({run.id: run})
    assert attempt is not None
    version = Node("version", version_id(base.id, (WeightedAdapter(adapter),)))
    step = Node.about("iteration", run=name, index=iteration.index, **_summary(iteration, attempt))
    graph.add(version, "made_by", step)
    graph.add(step, "part_of", run)
    graph.add(version, "follows", Node("version", parent.id))
    product, average = Node("adapter", adapter), Node("adapter", attempt.average)
    for earlier, _ in attempt.earlier:
        graph.add(product, "adds_up", Node("adapter", earlier))
    graph.add(product, "adds_up", average)
    trained = iter(attempt.adapters)
    for sample, training in zip(attempt.pairs, attempt.trainings, strict=True):
        pair = _pair(graph, sample, training.rank, training.diverged)
        graph.add(step, "tried" if training.diverged else "learned_from", pair)
        if not training.diverged:
            own = Node("adapter", next(trained))
            graph.add(average, "mean_of", own)
            graph.add(own, "trained_on", pair)
    return graph.lineage()


def _pair(graph: LineageGraph, sample: Sample, rank: int, diverged: str) -> Node:
    """The node of a pair with its advice and scores, and its sources."""
    regions = [{"prompt": region.prompt, "box": list(region.box)} for region in sample.regions]
    scores = {"before": dict(sample.scores_before or {}), "after": dict(sample.scores_after or {})}
    fields = {"prompt": sample.prompt, "seed": sample.seed, "gain": sample.gain, "rank": rank, "diverged": diverged}
    names = {"before": _names(sample.before), "after": _names(sample.after)}
    pair = Node.about("pair", **fields, regions=regions, scores=scores, cosine=sample.cosine, reason=sample.reason, pictures=names)
    graph.add(pair, "asked_as", Node.about("prompt", text=sample.asked))
    for relation, painted in (("before", sample.before), ("after", sample.after)):
        if painted is not None:
            graph.add(pair, f"picture_{relation}", Node("picture", painted.picture))
            graph.add(pair, f"latents_{relation}", Node("latents", painted.latents))
    return pair


def _metrics(iteration: Iteration) -> dict[str, float]:
    """The mean scores of the held-out pictures of an iteration's model, and the chosen alpha."""
    assert iteration.attempt is not None
    rows = iteration.attempt.heldout.scores if iteration.attempt.heldout else ()
    means = {f"heldout_{metric}": mean(row[metric] for row in rows) for metric in (rows[0] if rows else ())}
    return {"alpha": iteration.attempt.alpha} | {name: value for name, value in means.items() if value is not None}


def _summary(iteration: Iteration, attempt: TuningAttempt) -> dict[str, Any]:
    """The figures of an iteration."""
    tried = [{"alpha": c.alpha, "aesthetic": c.aesthetic, "clip": c.clip} for c in attempt.candidates]
    verdicts = iteration.verdicts
    counts = {"prompts": len(iteration.samples), "kept": verdicts.pop(KEPT), "removed_by": verdicts}
    return counts | {"alpha": attempt.alpha, "tried": tried, "compression": dict(attempt.compression or {}), "metrics": _metrics(iteration)}


def _names(painted: Painted | None) -> dict[str, str]:
    return {} if painted is None else {"picture": painted.picture, "latents": painted.latents}
