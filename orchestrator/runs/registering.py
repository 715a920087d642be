"""Registers the models of a finished run with their lineage. Nothing is computed.

    with RegistryClient(address) as registry:                           # or the engine, on the same machine
        register_run(name, recipe, plan, artifacts, registry, state)    # to do it again has no effect

The same run gives the same versions and the same lineage, whichever process registers it and however often. Where the registry cannot
be reached, it can be done later.
"""

from __future__ import annotations

from typing import Any

from orchestrator.recipes.plan import Plan
from orchestrator.recipes.recipe import Recipe
from orchestrator.runs.replay import replay_finished
from sfumato.errors import InvalidInput
from sfumato.registry.bases import base_modules
from sfumato.registry.models import Models
from sfumato.registry.records import Base, Version, WeightedAdapter
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.references import present_folder
from sfumato.runtime.settings import Settings


def register_run(
    name: str,
    recipe: Recipe[Any, Any, Any],
    plan: Plan[Any],
    artifacts: ArtifactStore,
    registry: Models,
    state: Any = None,
    *,
    note: str = "",
) -> list[Version]:
    """Register the base model and all models of the run, in order.

    Args:
        name: the run's id.
        recipe: its method.
        plan: its plan.
        artifacts: the store that holds all its results.
        registry: the registry; adapters that it lacks are uploaded.
        state: its last state, from the execution: tasks that became dead letters may be missing then. None: it is replayed from the
            store, where no result may be missing.
        note: replaces the run's id and the iteration as the versions' note.

    Raises:
        InvalidInput: the run made no model.
        MissingWeights: the run is not finished, or a result is no longer in the store.
        Unavailable: the registry does not answer.
    """
    found, libraries = replay_finished(name, recipe, plan, artifacts, complete=state is None)
    state = found if state is None else state
    products = recipe.products(name, plan, state, libraries)
    if not products:
        raise InvalidInput("run", f"{name} made no model: {recipe.conclude(state).stop_reason}.", hint="There is nothing to register.")
    base = _base(plan)
    versions = [registry.register(base, note=f"{plan.spec.model}, as it is")]
    for product in products:
        versions.append(
            registry.register(
                base,
                (WeightedAdapter(product.adapter),),
                files={product.adapter: artifacts.get(product.adapter)},
                lineage=product.lineage(base, versions[-1]),
                metrics=product.metrics,
                note=note or product.note,
            )
        )
    return versions[1:]


def _base(plan: Plan[Any]) -> Base:
    """The base model, with its linear layers if its folder still exists."""
    model = plan.models["generator"]
    folder = present_folder(model.reference, "generator", Settings())
    return Base(model.version, plan.spec.model, base_modules(folder) if folder else None)
