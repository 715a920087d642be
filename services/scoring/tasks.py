"""The scorers' tasks: payload to engine and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from services.scoring.engine import ScoringEngine
from services.scoring.judging import judge
from services.scoring.loading import Scorers, check_metrics
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.device import pick_device
from sfumato.runtime.images import decode_image
from sfumato.runtime.models.last_loaded import LastLoaded
from sfumato.runtime.models.references import checked_scorers
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Output, Task


def score(task: Task, artifacts: ArtifactStore) -> Output:
    """Score every item's picture against its prompt.

    Params: ``metrics``, names; ``models``, optional, a reference by metric. A metric without one uses Vista's weights. The values
    are ``{metric: number}``, one an item.
    """
    images = [decode_image(artifacts.get(item["picture"])) for item in task.items]
    metrics = task.params["metrics"]
    return Output(values=_engine(task, metrics).score(images, [item["prompt"] for item in task.items], metrics))


def similarity(task: Task, artifacts: ArtifactStore) -> Output:
    """The similarity of the pictures ``a`` and ``b`` of every item; the values are cosines of CLIP's image features."""
    first, second = ([decode_image(artifacts.get(item[side])) for item in task.items] for side in "ab")
    return Output(values=_engine(task, ["clip"]).similarity(first, second))


HANDLERS = {"scoring.score": score, "scoring.similarity": similarity, "scoring.judge": judge}


def engine_of(root: Path, models: Mapping[str, str], metrics: Sequence[str]) -> ScoringEngine:
    """An engine on the process's scorers of these weights, which stay loaded.

    Raises:
        InvalidInput, MissingWeights, BrokenWeights: as `load_scorers`.
    """
    return ScoringEngine(_scorers(root.resolve(), tuple(sorted(models.items()))).load(metrics))


def _engine(task: Task, metrics: Sequence[str]) -> ScoringEngine:
    models = task.params.get("models", {})
    check_metrics(metrics, models)
    return engine_of(checked_scorers(task.model_reference, models, task.model, Settings()), models, metrics)


@LastLoaded
def _scorers(root: Path, models: tuple[tuple[str, str], ...]) -> Scorers:
    return Scorers(root, dict(models), pick_device())
