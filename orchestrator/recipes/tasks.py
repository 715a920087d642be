"""Tasks that several methods send: painting, scoring, questions to the VLM, training; and rows cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.recipes.plan import Plan
from sfumato.runtime.tasks import Json, Manifest, Task
from sfumato.types import Region

RowT = TypeVar("RowT")
QUESTION = "review.pair"
"""The kind of the tasks that a person answers."""


@dataclass(frozen=True, slots=True)
class Painted:
    """A picture in the store: SHA-256 of its PNG, and of the file that holds its final latents under the name ``latents``."""

    picture: str
    latents: str


def paint(plan: Plan[Any], stage: str, rows: Sequence[tuple[str, int, tuple[Region, ...]]], adapter: str) -> Task:
    """Paint rows of ``(prompt, seed, regions)`` with the model that has ``adapter`` fused (empty: the base model)."""
    model = plan.models["generator"]
    items = tuple(
        {"prompt": prompt, "seed": seed, "regions": [{"prompt": region.prompt, "box": list(region.box)} for region in regions]}
        for prompt, seed, regions in rows
    )
    params = plan.spec.paint.model_dump() | {"adapter": adapter} | _machine(plan)
    return Task(stage=stage, kind="generator.paint", items=items, params=params, model=model.version, model_reference=model.reference)


def painted(done: Manifest) -> list[Painted]:
    """The pictures of a painting task, in the order of its items."""
    return [Painted(done.files[f"{index}.png"], done.files[f"{index}.safetensors"]) for index in range(len(done.items))]


def score(plan: Plan[Any], stage: str, pictures: Sequence[tuple[str, str]], metrics: Sequence[str]) -> Task:
    """Score rows of ``(prompt, picture)``."""
    items = tuple({"prompt": prompt, "picture": picture} for prompt, picture in pictures)
    return scoring(plan, stage, "score", items, {"metrics": list(metrics)})


def scoring(plan: Plan[Any], stage: str, verb: str, items: tuple[Any, ...], params: dict[str, Any]) -> Task:
    """A task for the scoring service."""
    model = plan.models["scorers"]
    params = params | {"models": dict(plan.spec.score.models)}
    return Task(stage=stage, kind=f"scoring.{verb}", items=items, params=params, model=model.version, model_reference=model.reference)


def asking(plan: Plan[Any], stage: str, verb: str, items: tuple[Any, ...], **params: Any) -> Task:
    """A task for the grounding service."""
    model, ground = plan.models["understanding"], plan.spec.ground
    params = {"backend": ground.backend, "profile": ground.profile} | params
    return Task(stage=stage, kind=f"grounding.{verb}", items=items, params=params, model=model.version, model_reference=model.reference)


def training(plan: Plan[Any], stage: str, verb: str, items: tuple[Any, ...], params: dict[str, Any]) -> Task:
    """A task for the trainer."""
    model, params = plan.models["generator"], params | _machine(plan)
    return Task(stage=stage, kind=f"trainer.{verb}", items=items, params=params, model=model.version, model_reference=model.reference)


def joint_training(plan: Plan[Any], stage: str, items: tuple[Any, ...], params: dict[str, Any]) -> Task:
    """A task for one trainer or a group of trainers; ``params`` determine how a step is cut into forwards."""
    model, params = plan.models["generator"], params | {"precision": plan.spec.precision}
    return Task(stage=stage, kind="joint.train", items=items, params=params, model=model.version, model_reference=model.reference)


def question(plan: Plan[Any], stage: str, item: Json) -> Task:
    """A question to a person, whose answer is the manifest (`orchestrator.runs.reviewing`): is picture ``b`` clearly better than ``a``?"""
    model = plan.models["generator"]
    return Task(stage=stage, kind=QUESTION, items=(item,), params={}, model=model.version, model_reference=model.reference)


def stand_in(task: Task, values: Json) -> Manifest:
    """The manifest that stands for a task that became a dead letter; it is never stored."""
    described = {"kind": task.kind, "items": task.items, "params": task.params, "model": task.model}
    return Manifest(task_id=task.id, values=values, files={}, versions={}, **described)


def _machine(plan: Plan[Any]) -> dict[str, Any]:
    """The precision of the generator's weights and the size of its forwards: they affect the last bits of the result."""
    gigabytes = plan.spec.memory_gb
    return {"precision": plan.spec.precision} | ({} if gigabytes is None else {"memory": int(gigabytes * 2**30)})


def chunks(rows: Sequence[RowT], size: int) -> list[Sequence[RowT]]:
    """Rows in groups of ``size``, the last may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
