"""``Idempotency-Key``: a repeated request gets the first one's answer; nothing is painted twice.

As in the IETF's draft (httpapi-idempotency-key-header): a key belongs to one owner and one request. While the first request is in work,
repeated ones wait for the same answer; a failed request is forgotten, so that it can be tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.inference.http.errors import RequestRefused
from sfumato.runtime.cancel import cancel_all

Answer = TypeVar("Answer")

LONGEST_KEY = 255


@dataclass(eq=False)
class _KeptAnswer(Generic[Answer]):
    """A request that was started: its fingerprint, its work, how many callers wait for it, and the answer's size and time."""

    fingerprint: str
    work: asyncio.Task[Answer]
    waiting: int = 0
    size: int = 0
    done: float = 0.0


class IdempotentAnswers(Generic[Answer]):
    """Answers by owner and key, limited in age and in bytes; for one event loop."""

    def __init__(self, keep: float, room: int, size: Callable[[Answer], int], clock: Callable[[], float] = time.monotonic) -> None:
        """``keep``: seconds; ``room``: bytes of all answers, measured by ``size``."""
        self._keep, self._room, self._size, self._clock = keep, room, size, clock
        self._kept: OrderedDict[tuple[str, str], _KeptAnswer[Answer]] = OrderedDict()
        self._held = 0

    async def once(self, owner: str, key: str, fingerprint: str, work: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """The answer of ``work``, which runs once per key; and whether the key was used before.

        ``fingerprint`` identifies the request. When every waiting caller is gone, the work is cancelled.

        Raises:
            RequestRefused: 422, the key was used for another request; 400, it is too long or empty. Also what ``work`` raises.
        """
        if not 0 < len(key) <= LONGEST_KEY:
            raise RequestRefused(400, f"Idempotency-Key: must have 1 to {LONGEST_KEY} characters.", "invalid_value", "Idempotency-Key")
        self._forget_old()
        name = owner, key
        kept = self._kept.get(name)
        before = kept is not None
        if kept is None:
            kept = self._kept[name] = _KeptAnswer(fingerprint, asyncio.ensure_future(_run(work)))
            kept.work.add_done_callback(lambda _: self._ended(name, kept))
        elif kept.fingerprint != fingerprint:
            message = "Idempotency-Key: this key was sent with another request. Send a new key with a new request."
            raise RequestRefused(422, message, "idempotency_key_reused", "Idempotency-Key")
        return await self._wait(name, kept), before

    async def _wait(self, name: tuple[str, str], kept: _KeptAnswer[Answer]) -> Answer:
        kept.waiting += 1
        try:
            return await asyncio.shield(kept.work)
        finally:
            kept.waiting -= 1
            if not kept.waiting and not kept.work.done():
                self._drop(name, kept)
                await cancel_all([kept.work])

    def _ended(self, name: tuple[str, str], kept: _KeptAnswer[Answer]) -> None:
        if kept.work.cancelled() or kept.work.exception() is not None:
            return self._drop(name, kept)
        if self._kept.get(name) is kept:
            kept.size, kept.done = self._size(kept.work.result()), self._clock()
            self._held += kept.size
            self._kept.move_to_end(name)
            self._forget_old()

    def _forget_old(self) -> None:
        """Drop answers that are too old, and the oldest ones while all answers together are too large."""
        limit = self._clock() - self._keep
        for name, kept in list(self._kept.items()):
            if kept.done and (kept.done < limit or self._held > self._room):
                self._drop(name, kept)

    def _drop(self, name: tuple[str, str], kept: _KeptAnswer[Answer]) -> None:
        if self._kept.get(name) is kept:
            del self._kept[name]
            self._held -= kept.size


async def _run(work: Callable[[], Awaitable[Answer]]) -> Answer:
    return await work()
