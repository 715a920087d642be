"""Pauses double up to a limit; what ends is started again until an error says otherwise."""

import asyncio

import pytest
from tenacity import RetryCallState, Retrying, wait_exponential

from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.backoff import pause, restarting


def test_pauses_are_those_of_tenacity() -> None:
    assert [pause(failures, 1.0, 30.0) for failures in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    state = RetryCallState(Retrying(), None, (), {})
    for failures in (1, 2, 7, 10_000):
        state.attempt_number = failures
        assert pause(failures, 0.5, 30.0) == wait_exponential(multiplier=0.5, max=30)(state)


def test_what_ends_is_started_again_and_any_other_error_is_raised() -> None:
    ends, told = [Unavailable("first"), InvalidInput("port", "is taken.")], []

    async def lives() -> None:
        async for attempt in restarting(lambda error: isinstance(error, Unavailable), told.append):
            with attempt:
                raise ends.pop(0)

    with pytest.raises(InvalidInput):
        asyncio.run(lives())
    assert told == ["first; it is started again in 0.5 s"] and not ends
