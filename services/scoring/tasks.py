"""The scorers' tasks: payload to engine and back, nothing else."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from services.scoring.engine import ScoringEngine, load_scorers
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import decode_image
from sfumato.runtime.tasks import Output, Task


def score(task: Task, artifacts: ArtifactStore) -> Output:
    """Score every item's picture against its prompt; the values are ``{metric: number}``."""
    metrics = tuple(task.params["metrics"])
    images = [decode_image(artifacts.get(item["picture"])) for item in task.items]
    return Output(values=_engine(task.model_path, metrics).score(images, [item["prompt"] for item in task.items], metrics))


HANDLERS = {"scoring.score": score}


@lru_cache(maxsize=1)
def _engine(root: str, metrics: tuple[str, ...]) -> ScoringEngine:
    return ScoringEngine(load_scorers(metrics, Path(root)))
