"""The scorers' tasks: payload to engine and back, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from services.scoring.engine import ScoringEngine
from services.scoring.loading import Scorers
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.device import pick_device
from sfumato.runtime.images import decode_image
from sfumato.runtime.tasks import Output, Task


def score(task: Task, artifacts: ArtifactStore) -> Output:
    """Score every item's picture against its prompt.

    Params: ``metrics``, names; ``models``, optional, a folder or hub model by metric. A metric without one uses the Vista
    weights at the task's ``model_path``. The values are ``{metric: number}``, one an item.
    """
    images = [decode_image(artifacts.get(item["picture"])) for item in task.items]
    metrics = task.params["metrics"]
    return Output(values=_engine(task, metrics).score(images, [item["prompt"] for item in task.items], metrics))


def similarity(task: Task, artifacts: ArtifactStore) -> Output:
    """How alike the pictures ``a`` and ``b`` of every item are; the values are cosines of CLIP's image features."""
    first, second = ([decode_image(artifacts.get(item[side])) for item in task.items] for side in "ab")
    return Output(values=_engine(task, ["clip"]).similarity(first, second))


HANDLERS = {"scoring.score": score, "scoring.similarity": similarity}


def _engine(task: Task, metrics: Sequence[str]) -> ScoringEngine:
    return ScoringEngine(_scorers(task.model_path, tuple(sorted(task.params.get("models", {}).items()))).load(metrics))


@lru_cache(maxsize=1)
def _scorers(root: str, models: tuple[tuple[str, str], ...]) -> Scorers:
    """Stays loaded from task to task, whatever metrics they ask for."""
    return Scorers(Path(root), dict(models), pick_device())
