"""Ending tasks of an event loop for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN = 0.2
"""Seconds after which a task that has not ended is cancelled again."""


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until all have ended, whatever they raise.

    Once is not enough: `asyncio.wait_for` swallows a cancellation that comes in the moment in which what it waits for is done
    (Python 3.11), and whoever called it goes on.
    """
    tasks = list(tasks)
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)  # seen, so that nobody complains that it was not
