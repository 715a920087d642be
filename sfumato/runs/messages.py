"""Records of runs to the messages of the contract and back. The orchestrator's service and its clients both translate here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from sfumato.errors import InvalidInput, SfumatoError
from sfumato.runs.records import Answer, DeadLettered, Ended, Event, Outcome, Question, RunState, RunStatus, ShownPicture
from sfumato.types import Region
from sfumato.v1 import common_pb2
from sfumato.v1 import orchestrator_pb2 as pb

STATE = "RUN_STATE_"
OUTCOMES: dict[RunState, Literal["finished", "failed", "cancelled"]] = {
    RunState.FINISHED: "finished",
    RunState.FAILED: "failed",
    RunState.CANCELLED: "cancelled",
}


def inputs_to(inputs: Mapping[str, Iterable[str]]) -> list[pb.InputSet]:
    """Lines by the name of their set; sets without lines are left out."""
    sets = [pb.InputSet(name=name, lines=lines) for name, lines in inputs.items()]
    return [found for found in sets if found.lines]


def inputs_from(messages: Sequence[pb.InputSet]) -> dict[str, list[str]]:
    """Lines by the name of their set.

    Raises:
        InvalidInput: two sets have the same name.
    """
    inputs: dict[str, list[str]] = {}
    for index, message in enumerate(messages):
        if message.name in inputs:
            raise InvalidInput(f"inputs[{index}].name", f"there are two sets with the name {message.name}.")
        inputs[message.name] = list(message.lines)
    return inputs


def status_to(status: RunStatus) -> pb.Run:
    """A run's status, with the outcome of one that has ended."""
    run = pb.Run(
        id=status.id,
        state=f"{STATE}{status.state.name}",
        note=status.note,
        submitted=_time_to(status.submitted),
        waiting=status.waiting,
        driver=status.driver,
        models=dict(status.models),
    )
    if status.latest is not None:
        run.latest.CopyFrom(event_to(status.latest))
    if status.remaining is not None:
        run.remaining.FromTimedelta(status.remaining)
    if status.ended is not None:
        run.ended.CopyFrom(_time_to(status.ended.at))
        run.outcome.CopyFrom(_outcome_to(status.ended.outcome))
    return run


def status_from(run: pb.Run) -> RunStatus:
    """A run's status.

    Raises:
        SfumatoError: its state is unknown here.
    """
    name = pb.RunState.Name(run.state).removeprefix(STATE) if run.state in pb.RunState.values() else ""
    if name not in RunState.__members__:
        raise SfumatoError(f"The run {run.id} has the unknown state {run.state}.", hint="Use the service's version of sfumato.")
    state = RunState[name]
    ended = None
    if run.HasField("ended") and state in OUTCOMES:
        ended = Ended(_outcome_from(run.outcome, OUTCOMES[state]), _time_from(run.ended))
    return RunStatus(
        id=run.id,
        state=state,
        submitted=_time_from(run.submitted),
        models=dict(sorted(run.models.items())),
        note=run.note,
        waiting=run.waiting,
        driver=run.driver,
        latest=event_from(run.latest) if run.HasField("latest") else None,
        remaining=run.remaining.ToTimedelta() if run.HasField("remaining") else None,
        ended=ended,
    )


def event_to(event: Event) -> pb.Event:
    """An event; its time in whole milliseconds."""
    message = pb.Event(
        number=event.number,
        phase=event.phase,
        iteration=event.iteration,
        stage=event.stage,
        done=event.done,
        total=event.total,
        reused=event.reused,
        dead_lettered=event.dead_lettered,
        note=event.note,
        shown=map(_picture_to, event.shown),
        outcome=event.outcome,
    )
    message.time.FromMilliseconds(round(event.time * 1000))
    if event.metrics:
        message.metrics.CopyFrom(ParseDict(event.metrics, Struct()))
    return message


def event_from(message: pb.Event) -> Event:
    """An event; of its metrics, whole numbers are integers."""
    return Event(
        number=message.number,
        time=message.time.ToMilliseconds() / 1000,
        phase=message.phase,
        iteration=message.iteration,
        stage=message.stage,
        done=message.done,
        total=message.total,
        reused=message.reused,
        dead_lettered=message.dead_lettered,
        note=message.note,
        metrics=_whole(MessageToDict(message.metrics)),
        shown=tuple(map(_picture_from, message.shown)),
        outcome=message.outcome,
    )


def update_to(update: RunStatus | Event) -> pb.OrchestratorServiceWatchResponse:
    """A status or an event, as a watched run reports it."""
    if isinstance(update, RunStatus):
        return pb.OrchestratorServiceWatchResponse(run=status_to(update))
    return pb.OrchestratorServiceWatchResponse(event=event_to(update))


def update_from(message: pb.OrchestratorServiceWatchResponse) -> RunStatus | Event:
    """A status or an event. Raises as `status_from`."""
    return status_from(message.run) if message.HasField("run") else event_from(message.event)


def question_to(question: Question) -> pb.Question:
    """A question with its pictures."""
    return pb.Question(
        id=question.id,
        phase=question.phase,
        iteration=question.iteration,
        prompt=question.prompt,
        asked=question.asked,
        seed=question.seed,
        pictures=map(_picture_to, question.pictures),
    )


def question_from(message: pb.Question) -> Question:
    """A question with its pictures."""
    return Question(
        id=message.id,
        phase=message.phase,
        iteration=message.iteration,
        prompt=message.prompt,
        asked=message.asked,
        seed=message.seed,
        pictures=tuple(map(_picture_from, message.pictures)),
    )


def answer_to(answer: Answer) -> pb.Answer:
    """Field by field."""
    return pb.Answer(question_id=answer.question_id, accepted=answer.accepted, reason=answer.reason)


def answer_from(message: pb.Answer) -> Answer:
    """Field by field."""
    return Answer(message.question_id, message.accepted, message.reason)


def _picture_to(picture: ShownPicture) -> pb.ShownPicture:
    """Without the strengths of the regions, which belong to painting."""
    return pb.ShownPicture(
        caption=picture.caption,
        digest=picture.digest,
        regions=map(_region_to, picture.regions),
        scores=picture.scores,
    )


def _picture_from(message: pb.ShownPicture) -> ShownPicture:
    regions = tuple(map(_region_from, message.regions))
    return ShownPicture(caption=message.caption, digest=message.digest, regions=regions, scores=dict(sorted(message.scores.items())))


def _region_to(region: Region) -> common_pb2.Region:
    x1, y1, x2, y2 = region.box
    return common_pb2.Region(prompt=region.prompt, box=common_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2))


def _region_from(message: common_pb2.Region) -> Region:
    box = message.box
    return Region(message.prompt, (box.x1, box.y1, box.x2, box.y2))


def _outcome_to(outcome: Outcome) -> pb.Outcome:
    """Without the state, which the message of the run has."""
    return pb.Outcome(
        stop_reason=outcome.stop_reason,
        error=outcome.error,
        hint=outcome.hint,
        files=outcome.files,
        dead_lettered=[
            pb.DeadLettered(phase=row.phase, iteration=row.iteration, reason=row.reason, lost=row.lost) for row in outcome.dead_lettered
        ],
    )


def _outcome_from(message: pb.Outcome, state: Literal["finished", "failed", "cancelled"]) -> Outcome:
    return Outcome(
        state=state,
        stop_reason=message.stop_reason,
        error=message.error,
        hint=message.hint,
        files=dict(sorted(message.files.items())),
        dead_lettered=tuple(
            DeadLettered(phase=row.phase, iteration=row.iteration, reason=row.reason, lost=dict(sorted(row.lost.items())))
            for row in message.dead_lettered
        ),
    )


def _time_to(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _time_from(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


def _whole(value: Any) -> Any:
    """The value with integers where a float is whole: a Struct has no integers."""
    if isinstance(value, dict):
        return {key: _whole(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
