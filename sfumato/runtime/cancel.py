"""Cancelling tasks of an event loop until they have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

INTERVAL = 0.2
"""Seconds after which a task that has not ended is cancelled again."""


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until all have ended; their exceptions are ignored.

    A task may need more than one cancellation: `asyncio.wait_for` swallows one that arrives at the moment at which the awaited task
    finishes (Python 3.11), and its caller continues.
    """
    tasks = list(tasks)
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=INTERVAL)
    await asyncio.gather(*tasks, return_exceptions=True)  # retrieves exceptions, which asyncio would report otherwise
