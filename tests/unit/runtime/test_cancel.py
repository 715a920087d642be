"""Tasks end, also those that swallow a cancellation."""

import asyncio

from sfumato.runtime.cancel import cancel_all


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
