"""A request that comes again is not painted again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from services.inference.http.errors import RequestRefused
from services.inference.http.idempotency import IdempotentAnswers


class Work:
    """Counts how often it is done; goes on when it is let."""

    def __init__(self) -> None:
        self.done = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self) -> bytes:
        self.done += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b"x" * self.done


Scenario = Callable[[IdempotentAnswers[bytes], Work], Awaitable[None]]


def run(scenario: Scenario, *, room: int = 100, clock: Callable[[], float] = lambda: 1.0) -> None:
    async def main() -> None:
        await scenario(IdempotentAnswers(60.0, room, len, clock), Work())

    asyncio.run(main())


def test_the_same_request_is_answered_once_and_another_refused() -> None:
    async def scenario(answers: IdempotentAnswers[bytes], work: Work) -> None:
        both = [asyncio.create_task(answers.once("me", "k", "body", work)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestRefused) as caught:
            await answers.once("me", "k", "other body", work)
        assert (caught.value.status, caught.value.param) == (422, "Idempotency-Key")
        work.go.set()
        assert sorted(before for _, before in await asyncio.gather(*both)) == [False, True]
        assert await answers.once("me", "k", "body", work) == (b"x", True) and work.done == 1
        assert await answers.once("you", "k", "other body", work) == (b"xx", False)  # a key is its owner's

    run(scenario)


def test_work_ends_when_the_last_who_waits_is_gone_and_may_be_asked_for_again() -> None:
    async def scenario(answers: IdempotentAnswers[bytes], work: Work) -> None:
        first, second = (asyncio.create_task(answers.once("me", "k", "body", work)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        assert work.cancelled == 0
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert work.cancelled == 1
        work.go.set()
        assert await answers.once("me", "k", "body", work) == (b"xx", False)

    run(scenario)


def test_what_failed_is_forgotten() -> None:
    async def failing() -> bytes:
        raise ValueError

    async def scenario(answers: IdempotentAnswers[bytes], work: Work) -> None:
        with pytest.raises(ValueError):
            await answers.once("me", "k", "body", failing)
        work.go.set()
        assert await answers.once("me", "k", "body", work) == (b"x", False)

    run(scenario)


def test_answers_are_kept_for_a_time_and_within_their_room() -> None:
    now = [1.0]

    async def scenario(answers: IdempotentAnswers[bytes], work: Work) -> None:
        work.go.set()
        for key in ("a", "b", "c"):  # 1, 2 and 3 bytes; 4 are kept
            await answers.once("me", key, "body", work)
        assert [(await answers.once("me", key, "body", work))[1] for key in ("c", "a")] == [True, False]
        now[0] += 61.0
        assert (await answers.once("me", "c", "body", work))[1] is False

    run(scenario, room=4, clock=lambda: now[0])


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    async def scenario(answers: IdempotentAnswers[bytes], work: Work) -> None:
        with pytest.raises(RequestRefused) as caught:
            await answers.once("me", key, "body", work)
        assert caught.value.status == 400

    run(scenario)
