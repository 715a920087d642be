"""Cancelling tasks of an event loop until they have ended, and blocking calls that are not abandoned when they are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

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


async def in_thread(call: Callable[[], T]) -> T:
    """The result of a blocking call, which is made in another thread; a cancellation takes effect when the call has ended."""
    calling = asyncio.ensure_future(asyncio.to_thread(call))
    cancelled = False
    while not calling.done():
        try:
            await asyncio.wait([calling])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        with contextlib.suppress(Exception):  # what is cancelled has no result
            calling.result()
        raise asyncio.CancelledError
    return calling.result()
