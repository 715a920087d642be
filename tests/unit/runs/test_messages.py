"""Records become messages of the contract and the same records again."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from sfumato.errors import InvalidInput, SfumatoError
from sfumato.runs import messages
from sfumato.runs.records import Answer, DeadLettered, Ended, Event, Outcome, Question, RunState, RunStatus, ShownPicture
from sfumato.types import Region
from sfumato.v1 import orchestrator_pb2 as pb

words = st.text(max_size=20)
counts = st.integers(0, 2**32 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1), timezones=st.just(UTC))
json_values: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | words,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(words, parts, max_size=3),
    max_leaves=8,
)
regions = st.builds(Region, words, st.tuples(counts, counts, counts, counts))
pictures = st.builds(
    ShownPicture,
    caption=words,
    digest=words,
    regions=st.lists(regions, max_size=3).map(tuple),
    scores=st.dictionaries(words, finite, max_size=3),
)
shown = st.lists(pictures, max_size=3).map(tuple)
events = st.builds(
    Event,
    number=st.integers(0, 2**64 - 1),
    time=st.integers(0, 253402300799000).map(lambda milliseconds: milliseconds / 1000),
    phase=words,
    iteration=counts,
    stage=words,
    done=counts,
    total=counts,
    reused=counts,
    dead_lettered=counts,
    note=words,
    metrics=st.dictionaries(words, json_values, max_size=4),
    shown=shown,
    outcome=words,
)
rows = st.builds(DeadLettered, phase=words, iteration=counts, reason=words, lost=st.dictionaries(words, counts, max_size=3))
ends = st.builds(
    Ended,
    st.builds(
        Outcome,
        state=st.sampled_from(["finished", "failed", "cancelled"]),
        stop_reason=words,
        error=words,
        hint=words,
        files=st.dictionaries(words, words, max_size=3),
        dead_lettered=st.lists(rows, max_size=3).map(tuple),
    ),
    moments,
)
statuses = st.builds(
    RunStatus,
    id=words,
    state=st.sampled_from(RunState),
    submitted=moments,
    models=st.dictionaries(words, words, max_size=3),
    note=words,
    waiting=counts,
    driver=words,
    latest=st.none() | events,
    remaining=st.none() | st.timedeltas(timedelta(0), timedelta(days=3650)),
    ended=st.none(),
)


def parsed(message: Any) -> Any:
    """The message after its way over a wire."""
    return type(message).FromString(message.SerializeToString())


@given(events)
def test_an_event_comes_back_the_same(event: Event) -> None:
    assert messages.event_from(parsed(messages.event_to(event))) == event
    assert messages.update_from(parsed(messages.update_to(event))) == event


@given(statuses.filter(lambda status: not status.state.ended))
def test_a_status_comes_back_the_same(status: RunStatus) -> None:
    assert messages.status_from(parsed(messages.status_to(status))) == status
    assert messages.update_from(parsed(messages.update_to(status))) == status


@given(statuses, ends)
def test_the_status_of_an_ended_run_comes_back_with_its_outcome(status: RunStatus, ended: Ended) -> None:
    status = replace(status, state=RunState(ended.outcome.state), ended=ended)
    assert messages.status_from(parsed(messages.status_to(status))) == status


@given(st.builds(Question, words, words, counts, words, words, st.integers(-(2**63), 2**63 - 1), shown))
def test_a_question_comes_back_the_same(question: Question) -> None:
    assert messages.question_from(parsed(messages.question_to(question))) == question


@given(st.builds(Answer, words, st.booleans(), words))
def test_an_answer_comes_back_the_same(answer: Answer) -> None:
    assert messages.answer_from(parsed(messages.answer_to(answer))) == answer


@given(st.dictionaries(words, st.lists(words, min_size=1, max_size=3), max_size=4))
def test_inputs_come_back_the_same(inputs: dict[str, list[str]]) -> None:
    assert messages.inputs_from([parsed(message) for message in messages.inputs_to(inputs)]) == inputs


def test_sets_without_lines_are_not_sent_and_two_of_one_name_are_refused() -> None:
    assert messages.inputs_to({"train": ["a"], "tune": []}) == [pb.InputSet(name="train", lines=["a"])]
    with pytest.raises(InvalidInput) as refused:
        messages.inputs_from([pb.InputSet(name="train"), pb.InputSet(name="tune"), pb.InputSet(name="train")])
    assert refused.value.field == "inputs[2].name"


def test_whole_metrics_come_back_as_integers() -> None:
    event = Event(number=1, time=0, phase="a", iteration=0, stage="b", done=1, total=1, reused=0, metrics={"kept": 2, "share": [0.5, 3]})
    metrics = messages.event_from(messages.event_to(event)).metrics
    assert metrics == {"kept": 2, "share": [0.5, 3]}
    assert isinstance(metrics["kept"], int) and isinstance(metrics["share"][1], int)


def test_metrics_that_are_no_json_are_refused() -> None:
    event = Event(number=1, time=0, phase="a", iteration=0, stage="b", done=1, total=1, reused=0, metrics={"loss": math.nan})
    with pytest.raises(ValueError):
        messages.event_from(messages.event_to(event))


@pytest.mark.parametrize("state", [0, 99])
def test_a_state_that_is_not_known_here_is_an_error(state: int) -> None:
    with pytest.raises(SfumatoError, match="unknown state"):
        messages.status_from(pb.Run(id="a-0123456789", state=state))  # pyright: ignore[reportArgumentType]


def test_every_state_of_the_contract_is_a_state_of_the_records() -> None:
    names = {name.removeprefix(messages.STATE) for name in pb.RunState.keys()}  # noqa: SIM118 (an enum's descriptor, not a dict)
    assert names == {state.name for state in RunState} | {"UNSPECIFIED"}
    assert set(messages.OUTCOMES) == {state for state in RunState if state.ended}
