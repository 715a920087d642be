"""The grounding service: messages to the engine and back."""

from __future__ import annotations

from typing import Any

from services.grounding.engine import GroundingEngine
from services.grounding.profiles import Strategy
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.serving.engine_queue import Caller, EngineQueue
from sfumato.runtime.serving.images import read_image
from sfumato.texts import normalised
from sfumato.v1 import common_pb2, grounding_pb2
from sfumato.v1.grounding_pb2_grpc import GroundingServiceServicer

STRATEGIES = {grounding_pb2.STRATEGY_SINGLE_TURN: Strategy.single_turn, grounding_pb2.STRATEGY_THREE_TURN: Strategy.three_turn}
CHOICES = {"A": grounding_pb2.CHOICE_A, "B": grounding_pb2.CHOICE_B, "tie": grounding_pb2.CHOICE_TIE}


class GroundingServicer(GroundingServiceServicer):
    """See ``protos/sfumato/v1/grounding.proto``."""

    def __init__(self, queue: EngineQueue[GroundingEngine], artifacts: ArtifactStore) -> None:
        self._queue, self._artifacts = queue, artifacts

    async def Ground(self, request: grounding_pb2.GroundRequest, context: Any) -> grounding_pb2.GroundResponse:
        """Regions of an image that could be more beautiful, and their better content."""

        def work(engine: GroundingEngine, caller: Caller) -> grounding_pb2.GroundResponse:
            image = read_image(request.image, "image", self._artifacts)
            if request.strategy:
                engine = GroundingEngine(engine.backend, engine.profile, STRATEGIES[request.strategy])
            answer = engine.ground(image, normalised(request.prompt))
            boxes = [common_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2) for x1, y1, x2, y2 in (region.box for region in answer.regions)]
            regions = [common_pb2.Region(prompt=region.prompt, box=box) for region, box in zip(answer.regions, boxes, strict=True)]
            return grounding_pb2.GroundResponse(regions=regions, raw=answer.raw)

        return await self._queue.call(work)

    async def Refine(self, request: grounding_pb2.RefineRequest, context: Any) -> grounding_pb2.RefineResponse:
        """A prompt without ambiguities."""
        prompt, raw = await self._queue.call(lambda engine, caller: engine.refine(normalised(request.prompt)))
        return grounding_pb2.RefineResponse(prompt=prompt, raw=raw)

    async def Ask(self, request: grounding_pb2.AskRequest, context: Any) -> grounding_pb2.AskResponse:
        """A yes/no question about an image."""

        def work(engine: GroundingEngine, caller: Caller) -> bool:
            return engine.ask(read_image(request.image, "image", self._artifacts), normalised(request.question))

        return grounding_pb2.AskResponse(yes=await self._queue.call(work))

    async def Compare(self, request: grounding_pb2.CompareRequest, context: Any) -> grounding_pb2.CompareResponse:
        """Which of two images is better."""

        def work(engine: GroundingEngine, caller: Caller) -> grounding_pb2.CompareResponse:
            a, b = (read_image(image, f"image_{name}", self._artifacts) for name, image in (("a", request.image_a), ("b", request.image_b)))
            said = engine.compare(a, b, normalised(request.prompt), both_orders=not request.one_order)
            return grounding_pb2.CompareResponse(choice=CHOICES[said.choice], reason=said.reason)

        return await self._queue.call(work)
