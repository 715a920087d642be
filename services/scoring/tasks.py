"""The scorers' tasks: payload to engine and back, nothing else."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from services.scoring.engine import ScoringEngine
from services.scoring.loading import load_scorers
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.device import pick_device
from sfumato.runtime.images import decode_image
from sfumato.runtime.tasks import Output, Task


def score(task: Task, artifacts: ArtifactStore) -> Output:
    """Score every item's picture against its prompt.

    Params: ``metrics``, names; ``models``, optional, a folder or hub model by metric. A metric without one uses the Vista
    weights at the task's ``model_path``. The values are ``{metric: number}``, one an item.
    """
    metrics = tuple(task.params["metrics"])
    engine = _engine(task.model_path, metrics, _models(task))
    images = [decode_image(artifacts.get(item["picture"])) for item in task.items]
    return Output(values=engine.score(images, [item["prompt"] for item in task.items], metrics))


def similarity(task: Task, artifacts: ArtifactStore) -> Output:
    """How alike the pictures ``a`` and ``b`` of every item are; the values are cosines of CLIP's image features."""
    first, second = ([decode_image(artifacts.get(item[side])) for item in task.items] for side in "ab")
    return Output(values=_engine(task.model_path, ("clip",), _models(task)).similarity(first, second))


HANDLERS = {"scoring.score": score, "scoring.similarity": similarity}


def _models(task: Task) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(task.params.get("models", {}).items()))


# A run scores by all metrics, by a few of them, and by CLIP alone, in turns: each of these stays loaded.
@lru_cache(maxsize=3)
def _engine(root: str, metrics: tuple[str, ...], models: tuple[tuple[str, str], ...]) -> ScoringEngine:
    return ScoringEngine(load_scorers(metrics, Path(root), dict(models), pick_device()))
