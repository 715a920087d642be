"""A finished run's models into the registry, with all they came of. Nothing is computed: the run is gone through once more over what
it has stored."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engine import Engine
from orchestrator.recipes import artaug
from orchestrator.recipes.artaug import Iteration, Model, Painted, Plan, Sample, State, Trial
from orchestrator.spec import PromptSets, RunSpec
from sfumato.cli.planning import read_record
from sfumato.errors import InvalidInput, MissingWeights, SfumatoError
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.references import present_folder
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Manifest, Task

if TYPE_CHECKING:
    from services.registry.engine import Registry
    from sfumato.registry.records import Base, Edge, Lineage, Node, Version


def register_run(folder: Path, registry: Registry, artifacts: ArtifactStore, note: str = "") -> list[Version]:
    """Register the base model and the model of every iteration that was fused, the last one last.

    Args:
        folder: the run's, with its record.
        registry: where to.
        artifacts: the store the run worked with.
        note: a few words, in place of the run's id and the iteration.

    Raises:
        InvalidInput: the run is not finished, or none of its iterations was fused.
        MissingWeights: something it made is no longer in the store.
    """
    from sfumato.registry.records import Part

    record = read_record(folder)
    if not record.finished:
        raise InvalidInput("run", f"{folder.name} is not finished.", hint=f"Let it go on: sfumato run --resume {folder.name}")
    sets = PromptSets(**{name: tuple(prompts) for name, prompts in record.prompts.items()})
    plan = Plan(RunSpec.model_validate(record.spec), sets, {part: Model(**model) for part, model in record.models.items()})
    state, libraries = replayed(plan, folder.name, artifacts)
    if not state.fused:
        raise InvalidInput("run", f"{folder.name} made no model: {state.stop_reason}.", hint="There is nothing to register.")
    base = _base(plan)
    told = _Lineage(folder.name, plan, libraries)
    versions = [registry.register(base, note=f"{plan.spec.model}, as it is")]
    for iteration in state.fused:
        assert iteration.trial is not None
        parts = (Part(iteration.trial.stacked),)
        graph = told.of(base, parts[0].adapter, versions[-1], iteration)
        words = note or f"{folder.name}, iteration {iteration.index}"
        versions.append(registry.register(base, parts, lineage=graph, metrics=_metrics(iteration), note=words))
    return versions[1:]


def replayed(plan: Plan, name: str, artifacts: ArtifactStore) -> tuple[State, dict[str, str]]:
    """The last state of a finished run from its manifests, and the versions of the libraries it was made with.

    Raises:
        MissingWeights: a manifest is not there any more.
    """
    store = _Noted(artifacts)
    state = Engine(plan, plan.spec.batch, _Nobody(name), store, lambda _: None).run(artaug.STAGES, artaug.start(plan))
    libraries: dict[str, set[str]] = {}
    for manifest in store.manifests:
        for library, version in manifest.versions.items():
            libraries.setdefault(library, set()).add(version)
    return state, {library: " and ".join(sorted(versions)) for library, versions in sorted(libraries.items())}


class _Noted(ArtifactStore):
    """A store that notes which manifests are read."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        super().__init__(artifacts.url)
        self.manifests: list[Manifest] = []

    def read_key(self, key: str) -> bytes | None:
        """See `ArtifactStore`."""
        data = super().read_key(key)
        if data is not None and key.startswith("manifests/"):
            self.manifests.append(Manifest.model_validate_json(data))
        return data


class _Nobody:
    """A transport that takes no task: a finished run has none left."""

    def __init__(self, name: str) -> None:
        self._name = name

    def prepare(self, services: Iterable[str]) -> None:
        """Somebody will be asked; `submit` says no."""

    def submit(self, task: Task, urgency: int = 0) -> None:
        raise MissingWeights(
            f"The stage {task.stage} of {self._name} has a result that is not in the artifact store.",
            hint=f"Was it cleared? Make it anew: sfumato run --resume {self._name}",
        )

    def next(self) -> Manifest:
        raise SfumatoError("A finished run has nothing to wait for.")

    def release(self, service: str) -> None:
        """Nothing was started."""


def _base(plan: Plan) -> Base:
    """The base model, with its linears where it still lies where the run had it."""
    from services.registry.adapters import base_modules
    from sfumato.registry.records import Base

    model = plan.models["generator"]
    folder = present_folder(model.reference, "generator", Settings())
    return Base(model.version, plan.spec.model, base_modules(folder) if folder else None)


def _metrics(iteration: Iteration) -> dict[str, float]:
    """What the held-out pictures of an iteration's model score on the mean, and the strength that was chosen."""
    from orchestrator.summary import mean

    assert iteration.trial is not None
    rows = iteration.trial.heldout.scores if iteration.trial.heldout else ()
    means = {f"heldout_{metric}": mean(row[metric] for row in rows) for metric in (rows[0] if rows else ())}
    return {"alpha": iteration.trial.alpha} | {name: value for name, value in means.items() if value is not None}


class _Lineage:
    """From a model of a run back to the prompts: version, iteration, run; adapters, pairs, pictures, prompts."""

    def __init__(self, name: str, plan: Plan, libraries: dict[str, str]) -> None:
        from sfumato.registry.records import Node

        spec = plan.spec
        places = {"prompts": {"file"}, "tune": {"file"}, "evaluate": {"file", "ceiling"}}
        self._name = name
        self._run = Node.about(
            "run",
            id=name,
            recipe=spec.recipe,
            spec=spec.model_dump(mode="json", exclude=places),
            models={part: model.version for part, model in sorted(plan.models.items())},
            seeds={"prompts": spec.prompts.seed, "tune": spec.tune.seed if spec.tune else None, "evaluate": spec.evaluate.seed},
            libraries=libraries,
        )

    def of(self, base: Base, adapter: str, parent: Version, iteration: Iteration) -> Lineage:
        """The graph of one iteration's model; ``parent`` is the one before it."""
        from sfumato.registry.records import Lineage, Node, Part, version_id

        trial = iteration.trial
        assert trial is not None
        self._nodes: dict[str, Node] = {self._run.id: self._run}
        self._edges: dict[Edge, None] = {}
        version = Node("version", version_id(base.id, (Part(adapter),)))
        step = Node.about("iteration", run=self._name, index=iteration.index, **_said(iteration, trial))
        self._came(version, "made_by", step)
        self._came(step, "part_of", self._run)
        self._came(version, "follows", Node("version", parent.id))
        product, mean = Node("adapter", adapter), Node("adapter", trial.average)
        for earlier, _ in trial.earlier:
            self._came(product, "adds_up", Node("adapter", earlier))
        self._came(product, "adds_up", mean)
        trained = iter(trial.adapters)
        for sample, training in zip(trial.pairs, trial.trainings, strict=True):
            pair = self._pair(sample, training.rank, training.diverged)
            self._came(step, "tried" if training.diverged else "learned_from", pair)
            if not training.diverged:
                own = Node("adapter", next(trained))
                self._came(mean, "mean_of", own)
                self._came(own, "trained_on", pair)
        return Lineage(tuple(self._nodes.values()), tuple(self._edges))

    def _pair(self, sample: Sample, rank: int, diverged: str) -> Node:
        from sfumato.registry.records import Node

        regions = [{"prompt": region.prompt, "box": list(region.box)} for region in sample.regions]
        scores = {"before": dict(sample.scores_before or {}), "after": dict(sample.scores_after or {})}
        said = {"prompt": sample.prompt, "seed": sample.seed, "gain": sample.gain, "rank": rank, "diverged": diverged}
        names = {"before": _names(sample.before), "after": _names(sample.after)}
        pair = Node.about("pair", **said, regions=regions, scores=scores, cosine=sample.cosine, reason=sample.reason, pictures=names)
        self._came(pair, "asked_as", Node.about("prompt", text=sample.asked))
        for relation, painted in (("before", sample.before), ("after", sample.after)):
            if painted is not None:
                self._came(pair, f"picture_{relation}", Node("picture", painted.picture))
                self._came(pair, f"latents_{relation}", Node("latents", painted.latents))
        return pair

    def _came(self, node: Node, relation: str, source: Node) -> None:
        """Note an edge, and both its ends. A mean of one adapter, or a sum of one, is that adapter: no edge."""
        from sfumato.registry.records import Edge

        self._nodes.setdefault(node.id, node)
        self._nodes.setdefault(source.id, source)
        if node.id != source.id:
            self._edges[Edge(node.id, relation, source.id)] = None


def _said(iteration: Iteration, trial: Trial) -> dict[str, Any]:
    """What an iteration says of itself."""
    tried = [{"alpha": c.alpha, "aesthetic": c.aesthetic, "clip": c.clip} for c in trial.candidates]
    counts = {"prompts": len(iteration.samples), "kept": len(iteration.kept), "removed_by": iteration.removed_by}
    return counts | {"alpha": trial.alpha, "tried": tried, "compression": dict(trial.compression or {}), "metrics": _metrics(iteration)}


def _names(painted: Painted | None) -> dict[str, str]:
    return {} if painted is None else {"picture": painted.picture, "latents": painted.latents}
