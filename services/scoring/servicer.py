"""The scoring service: messages to the engine and back."""

from __future__ import annotations

from typing import Any

from services.scoring.engine import ScoringEngine
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.serving.engine_queue import Caller, EngineQueue
from sfumato.runtime.serving.images import read_image
from sfumato.texts import normalised
from sfumato.v1.scoring_pb2 import ListMetricsRequest, ListMetricsResponse, Metric, ScoreRequest, ScoreResponse, Scores
from sfumato.v1.scoring_pb2_grpc import ScoringServiceServicer


class ScoringServicer(ScoringServiceServicer):
    """See ``protos/sfumato/v1/scoring.proto``."""

    def __init__(self, queue: EngineQueue[ScoringEngine], artifacts: ArtifactStore) -> None:
        self._queue, self._artifacts = queue, artifacts

    async def Score(self, request: ScoreRequest, context: Any) -> ScoreResponse:
        """Score a batch of pictures."""

        def work(engine: ScoringEngine, caller: Caller) -> list[dict[str, float]]:
            images = [read_image(item.image, f"items[{k}].image", self._artifacts) for k, item in enumerate(request.items)]
            caller.check()
            return engine.score(images, [normalised(item.prompt) for item in request.items], list(request.metrics) or None)

        return ScoreResponse(scores=[Scores(values=row) for row in await self._queue.call(work)])

    async def ListMetrics(self, request: ListMetricsRequest, context: Any) -> ListMetricsResponse:
        """The metrics that are loaded."""
        metrics = [
            Metric(name=m.name, low=m.low, high=m.high, higher_is_better=m.higher_is_better, version=m.version)
            for m in self._queue.engine.metrics
        ]
        return ListMetricsResponse(metrics=metrics)
