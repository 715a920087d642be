"""Tasks end, also those that swallow a cancellation."""

import asyncio
import threading
import time

import pytest

from sfumato.runtime.cancel import cancel_all, in_thread


def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    async def stubborn() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
        await asyncio.sleep(60)

    async def broken() -> None:
        raise ValueError

    async def both() -> list[bool]:
        tasks = [asyncio.create_task(stubborn()), asyncio.create_task(broken())]
        await asyncio.sleep(0)
        await cancel_all(tasks)
        return [task.done() for task in tasks] + [tasks[0].cancelled(), isinstance(tasks[1].exception(), ValueError)]

    assert asyncio.run(both()) == [True, True, True, True]


def test_a_call_in_a_thread_is_not_abandoned_when_it_is_cancelled() -> None:
    async def cancelled() -> tuple[bool, bool]:
        begun, ended = threading.Event(), threading.Event()

        def call() -> None:
            begun.set()
            time.sleep(0.5)
            ended.set()

        task = asyncio.create_task(in_thread(call))
        await asyncio.to_thread(begun.wait)
        await cancel_all([task])
        return task.cancelled(), ended.is_set()

    assert asyncio.run(cancelled()) == (True, True)


def test_a_call_in_a_thread_returns_and_raises() -> None:
    async def both() -> int:
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)
        return await in_thread(lambda: 7)

    assert asyncio.run(both()) == 7
