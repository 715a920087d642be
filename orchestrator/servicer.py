"""The orchestrator's gRPC service: translates messages to calls of `orchestrator.control` and back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from sfumato.runs import messages
from sfumato.v1 import orchestrator_pb2 as pb
from sfumato.v1.orchestrator_pb2_grpc import OrchestratorServiceServicer

if TYPE_CHECKING:
    from orchestrator.control import RunService

PAGE = 50
"""The runs on a page if the caller does not say how many."""


class OrchestratorServicer(OrchestratorServiceServicer):
    """See ``protos/sfumato/v1/orchestrator.proto``."""

    def __init__(self, service: RunService) -> None:
        self._service = service

    async def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitResponse:
        """Start a run, or continue it."""
        status, created = await self._service.submit(request.spec, messages.inputs_from(request.inputs))
        return pb.SubmitResponse(run=messages.status_to(status), created=created)

    async def Get(self, request: pb.OrchestratorServiceGetRequest, context: Any) -> pb.OrchestratorServiceGetResponse:
        """The status and the spec of a run."""
        status, record = await self._service.get(request.run_id), await self._service.spec(request.run_id)
        return pb.OrchestratorServiceGetResponse(run=messages.status_to(status), spec=json.dumps(record.spec))

    async def List(self, request: pb.OrchestratorServiceListRequest, context: Any) -> pb.OrchestratorServiceListResponse:
        """A page of runs."""
        found, more = await self._service.page(request.page_size or PAGE, request.page_token)
        return pb.OrchestratorServiceListResponse(runs=map(messages.status_to, found), next_page_token=more)

    async def Watch(self, request: pb.OrchestratorServiceWatchRequest, context: Any) -> AsyncIterator[pb.OrchestratorServiceWatchResponse]:
        """The changes of a run."""
        async for update in self._service.watch(request.run_id):
            yield messages.update_to(update)

    async def Pause(self, request: pb.PauseRequest, context: Any) -> pb.PauseResponse:
        """Pause a run."""
        return pb.PauseResponse(run=messages.status_to(await self._service.pause(request.run_id)))

    async def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeResponse:
        """Continue a run."""
        return pb.ResumeResponse(run=messages.status_to(await self._service.resume(request.run_id)))

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        """Cancel a run."""
        return pb.CancelResponse(run=messages.status_to(await self._service.cancel(request.run_id)))

    async def Review(self, request: pb.ReviewRequest, context: Any) -> pb.ReviewResponse:
        """Take answers, and list the questions that wait."""
        answers, waiting = await self._service.review(request.run_id, [messages.answer_from(answer) for answer in request.answers])
        return pb.ReviewResponse(answers=map(messages.answer_to, answers), waiting=map(messages.question_to, waiting))
