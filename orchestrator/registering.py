"""A finished run's models into the registry, with all they came of. Nothing is computed: the run is gone through once more over what
it has stored.

    with RegistryClient(address) as registry:                   # or the engine, on the same machine
        register_run(name, plan, artifacts, registry, state)    # after `finish`; again does no harm

The same run gives the same versions and the same lineage, whoever registers it and however often: whoever cannot reach the registry
may let it be and try again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from orchestrator.engine import Engine
from orchestrator.recipes import artaug
from orchestrator.recipes.artaug import Iteration, Painted, Plan, Sample, State, Trial
from orchestrator.recipes.artaug.state import KEPT
from orchestrator.summary import mean
from sfumato.errors import InvalidInput, MissingWeights, PoisonTask
from sfumato.registry.bases import base_modules
from sfumato.registry.models import Models
from sfumato.registry.records import Base, Edge, Lineage, Node, Version, WeightedAdapter, version_id
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.references import present_folder
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Manifest, Task


def register_run(
    name: str, plan: Plan, artifacts: ArtifactStore, registry: Models, state: State | None = None, *, note: str = ""
) -> list[Version]:
    """Register the base model and the model of every iteration that was fused, the last one last.

    Args:
        name: the run's id.
        plan: what it was asked for.
        artifacts: the store it worked with, where all its results are.
        registry: where to; adapters that it has not yet are sent.
        state: its last one, from whoever drove it: tasks that were set aside may be missing then. None: found out from the store, where
            nothing may be missing.
        note: a few words, in place of the run's id and the iteration.

    Raises:
        InvalidInput: none of its iterations was fused: there is no model.
        MissingWeights: the run is not finished, or something it made is no longer in the store.
        Unavailable: the registry does not answer.
    """
    found, libraries = replayed(plan, name, artifacts, whole=state is None)
    state = found if state is None else state
    if not state.fused:
        raise InvalidInput("run", f"{name} made no model: {state.stop_reason}.", hint="There is nothing to register.")
    base = _base(plan)
    told = _Lineage(name, plan, libraries)
    versions = [registry.register(base, note=f"{plan.spec.model}, as it is")]
    for iteration in state.fused:
        assert iteration.trial is not None
        digest = iteration.trial.stacked
        versions.append(
            registry.register(
                base,
                (WeightedAdapter(digest),),
                files={digest: artifacts.get(digest)},
                lineage=told.of(base, digest, versions[-1], iteration),
                metrics=_metrics(iteration),
                note=note or f"{name}, iteration {iteration.index}",
            )
        )
    return versions[1:]


def replayed(plan: Plan, name: str, artifacts: ArtifactStore, *, whole: bool = True) -> tuple[State, dict[str, str]]:
    """The last state of a finished run from its manifests, and the versions of the libraries it was made with.

    Raises:
        MissingWeights: a manifest is not there any more, and the run is to be ``whole``.
    """
    store = _Noted(artifacts)
    state = Engine(plan, plan.spec.batch, _Nobody(name, whole), store, lambda _: None).run(artaug.STAGES, artaug.start(plan))
    return state, {library: " and ".join(sorted(versions)) for library, versions in sorted(store.libraries.items())}


class _Noted(ArtifactStore):
    """A store that notes with which libraries the manifests that are read were made."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        super().__init__(artifacts.url)
        self.libraries: dict[str, set[str]] = {}

    def read_key(self, key: str) -> bytes | None:
        """See `ArtifactStore`."""
        data = super().read_key(key)
        if data is not None and key.startswith("manifests/"):
            for library, version in Manifest.model_validate_json(data).versions.items():
                self.libraries.setdefault(library, set()).add(version)
        return data


class _Nobody:
    """A transport that does no task: a finished run has none left but those that were set aside, if it is not ``whole``."""

    def __init__(self, name: str, whole: bool) -> None:
        self._name, self._whole = name, whole
        self._missing: deque[Task] = deque()

    def prepare(self, services: Iterable[str]) -> None:
        """Somebody will be asked; `submit` says no."""

    def submit(self, task: Task, urgency: int = 0) -> None:
        if self._whole:
            raise MissingWeights(
                f"The stage {task.stage} of {self._name} has a result that is not in the artifact store.",
                hint=f"Was it cleared? Make it anew: sfumato run --resume {self._name}",
            )
        self._missing.append(task)

    def next(self) -> Manifest:
        raise PoisonTask(self._missing.popleft().id, "It was set aside.")

    def release(self, service: str) -> None:
        """Nothing was started."""


def _base(plan: Plan) -> Base:
    """The base model, with its linears where it still lies where the run had it."""
    model = plan.models["generator"]
    folder = present_folder(model.reference, "generator", Settings())
    return Base(model.version, plan.spec.model, base_modules(folder) if folder else None)


def _metrics(iteration: Iteration) -> dict[str, float]:
    """What the held-out pictures of an iteration's model score on the mean, and the strength that was chosen."""
    assert iteration.trial is not None
    rows = iteration.trial.heldout.scores if iteration.trial.heldout else ()
    means = {f"heldout_{metric}": mean(row[metric] for row in rows) for metric in (rows[0] if rows else ())}
    return {"alpha": iteration.trial.alpha} | {name: value for name, value in means.items() if value is not None}


class _Lineage:
    """From a model of a run back to the prompts: version, iteration, run; adapters, pairs, pictures, prompts."""

    def __init__(self, name: str, plan: Plan, libraries: dict[str, str]) -> None:
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
        trial = iteration.trial
        assert trial is not None
        self._nodes: dict[str, Node] = {self._run.id: self._run}
        self._edges: dict[Edge, None] = {}
        version = Node("version", version_id(base.id, (WeightedAdapter(adapter),)))
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

        self._nodes.setdefault(node.id, node)
        self._nodes.setdefault(source.id, source)
        if node.id != source.id:
            self._edges[Edge(node.id, relation, source.id)] = None


def _said(iteration: Iteration, trial: Trial) -> dict[str, Any]:
    """What an iteration says of itself."""
    tried = [{"alpha": c.alpha, "aesthetic": c.aesthetic, "clip": c.clip} for c in trial.candidates]
    verdicts = iteration.verdicts
    counts = {"prompts": len(iteration.samples), "kept": verdicts.pop(KEPT), "removed_by": verdicts}
    return counts | {"alpha": trial.alpha, "tried": tried, "compression": dict(trial.compression or {}), "metrics": _metrics(iteration)}


def _names(painted: Painted | None) -> dict[str, str]:
    return {} if painted is None else {"picture": painted.picture, "latents": painted.latents}
