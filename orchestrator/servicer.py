"""The orchestrator's service: messages to `orchestrator.control` and back, nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator import events, reviewing, runs
from orchestrator.control import Answered, Control
from sfumato.types import Region as RegionOf
from sfumato.v1 import orchestrator_pb2 as contract
from sfumato.v1.common_pb2 import Box, Region
from sfumato.v1.orchestrator_pb2_grpc import OrchestratorServiceServicer

PAGE = 50
"""Runs on a page, where the caller does not say."""
STATES = {state: f"RUN_STATE_{state.name}" for state in runs.State}


class OrchestratorServicer(OrchestratorServiceServicer):
    """See ``protos/sfumato/v1/orchestrator.proto``."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def Submit(self, request: contract.SubmitRequest, context: Any) -> contract.SubmitResponse:
        """Begin a run, or go on with it."""
        prompts = {name: list(getattr(request.prompts, name)) for name in ("train", "tune", "heldout", "ceiling")}
        standing, created = await self._control.submit(request.spec, prompts)
        return contract.SubmitResponse(run=_run(standing), created=created)

    async def Get(self, request: contract.OrchestratorServiceGetRequest, context: Any) -> contract.OrchestratorServiceGetResponse:
        """How a run stands."""
        standing, record = await self._control.get(request.run_id), await self._control.spec(request.run_id)
        return contract.OrchestratorServiceGetResponse(run=_run(standing), spec=json.dumps(record.spec))

    async def List(self, request: contract.OrchestratorServiceListRequest, context: Any) -> contract.OrchestratorServiceListResponse:
        """A page of runs."""
        found, more = await self._control.page(request.page_size or PAGE, request.page_token)
        return contract.OrchestratorServiceListResponse(runs=[_run(standing) for standing in found], next_page_token=more)

    async def Watch(
        self, request: contract.OrchestratorServiceWatchRequest, context: Any
    ) -> AsyncIterator[contract.OrchestratorServiceWatchResponse]:
        """How a run goes on."""
        async for update in self._control.watch(request.run_id):
            if isinstance(update, runs.Standing):
                yield contract.OrchestratorServiceWatchResponse(run=_run(update))
            else:
                yield contract.OrchestratorServiceWatchResponse(event=_event(update))

    async def Pause(self, request: contract.PauseRequest, context: Any) -> contract.PauseResponse:
        """Stop a run for now."""
        return contract.PauseResponse(run=_run(await self._control.pause(request.run_id)))

    async def Resume(self, request: contract.ResumeRequest, context: Any) -> contract.ResumeResponse:
        """Go on with a run."""
        return contract.ResumeResponse(run=_run(await self._control.resume(request.run_id)))

    async def Cancel(self, request: contract.CancelRequest, context: Any) -> contract.CancelResponse:
        """Give a run up."""
        return contract.CancelResponse(run=_run(await self._control.cancel(request.run_id)))

    async def Review(self, request: contract.ReviewRequest, context: Any) -> contract.ReviewResponse:
        """Answer for pairs, and list those that wait."""
        answers = [Answered(answer.pair_id, answer.accepted, answer.reason) for answer in request.answers]
        stand, waiting = await self._control.review(request.run_id, answers)
        said = [contract.Answer(pair_id=answer.pair_id, accepted=answer.accepted, reason=answer.reason) for answer in stand]
        return contract.ReviewResponse(answers=said, waiting=[_pair(pair) for pair in waiting])


def _run(standing: runs.Standing) -> contract.Run:
    run = contract.Run(
        id=standing.id,
        state=STATES[standing.state],
        note=standing.note,
        submitted=_time(standing.submitted),
        waiting=standing.waiting,
        driver=standing.driver,
        models=dict(standing.models),
    )
    if standing.latest is not None:
        run.latest.CopyFrom(_event(standing.latest))
    if standing.remaining is not None:
        run.remaining.FromTimedelta(standing.remaining)
    if standing.ended is not None:
        outcome = standing.ended.outcome
        run.ended.CopyFrom(_time(standing.ended.at))
        run.outcome.CopyFrom(contract.Outcome(stop_reason=outcome.stop_reason, error=outcome.error, hint=outcome.hint, files=outcome.files))
        for aside in outcome.set_aside:
            run.outcome.set_aside.add(**aside.model_dump())
    return run


def _event(event: events.Event) -> contract.Event:
    message = contract.Event(
        number=event.number,
        iteration=event.iteration,
        stage=event.stage,
        done=event.done,
        total=event.total,
        reused=event.reused,
        set_aside=event.set_aside,
        note=event.note,
        outcome=event.outcome,
    )
    message.time.FromNanoseconds(round(event.time * 1000) * 10**6)
    if event.metrics:
        message.metrics.CopyFrom(ParseDict(event.metrics, Struct()))
    if event.pair is not None:
        pair = event.pair
        message.pair.CopyFrom(contract.ShownPair(prompt=pair.prompt, before=pair.before, after=pair.after, regions=_regions(pair.regions)))
    return message


def _pair(pair: reviewing.Pair) -> contract.Pair:
    sample, item = pair.sample, pair.task.items[0]
    return contract.Pair(
        id=pair.task.id,
        iteration=pair.iteration,
        prompt=sample.prompt,
        asked=sample.asked,
        seed=sample.seed,
        before=item["a"],
        after=item["b"],
        regions=_regions(sample.regions),
        scores_before=dict(sample.scores_before or {}),
        scores_after=dict(sample.scores_after or {}),
    )


def _regions(regions: tuple[RegionOf, ...]) -> list[Region]:
    return [Region(prompt=region.prompt, box=Box(x1=x1, y1=y1, x2=x2, y2=y2)) for region in regions for x1, y1, x2, y2 in [region.box]]


def _time(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
