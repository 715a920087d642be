"""Pulling the messages of one JetStream consumer."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque

from nats.aio.msg import Msg
from nats.js.errors import ServiceUnavailableError

from sfumato.runtime.bus import Bus


class Puller:
    """Pulls messages of one consumer; at most one pull request is open at a time.

    (nats-py's `fetch` waits for a whole batch; here a message is available as soon as it is delivered.)
    """

    def __init__(self, bus: Bus, stream: str, consumer: str, expires: float = 5.0) -> None:
        self._bus, self._expires = bus, expires
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._messages: deque[Msg] = deque()
        self._news = asyncio.Event()
        self._wanted, self._until = 0, 0.0
        self._lost = False
        self._closed = False

    async def open(self) -> None:
        """Subscribe."""
        self._bus.on_return.append(self._ask_again)
        self._inbox = self._bus.client.new_inbox()
        self._subscription = await self._bus.client.subscribe(self._inbox, cb=self._received)

    async def close(self) -> list[Msg]:
        """Unsubscribe; returns the messages that were received and not taken, which the caller gives back."""
        self._closed = True
        self._news.set()
        self._bus.on_return.remove(self._ask_again)
        if not self._bus.client.is_closed:
            await self._subscription.unsubscribe()
        left = list(self._messages)
        self._messages.clear()
        return left

    async def ask(self, most: int) -> None:
        """Request up to ``most`` messages, unless messages are waiting or a request is open."""
        now = time.monotonic()
        if self._closed or self._messages or (self._wanted > 0 and now < self._until):
            return
        self._wanted, self._until = most, now + self._expires + 1.0
        request = {"batch": most, "expires": int(self._expires * 1e9)}
        await self._bus.client.publish(self._next, json.dumps(request).encode(), reply=self._inbox)

    async def take(self, most: int) -> list[Msg]:
        """Up to ``most`` messages, at least one; an empty list if this is closed.

        Raises:
            NatsError: the consumer does not exist.
            Blocked: this user may not pull.
        """
        while not self._messages and not self._closed:
            self._news.clear()
            await self.ask(most)
            try:
                async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                    await self._news.wait()
            except TimeoutError as error:
                self._wanted = 0
                # The server answers a request before this, if only to say that there is no message.
                refused = self._bus.refusal(error)
                if refused is not None:
                    raise refused from error
            if self._lost:
                self._lost, self._wanted = False, 0
                raise ServiceUnavailableError(code=503, description="no such consumer")
        return [self._messages.popleft() for _ in range(min(most, len(self._messages)))]

    def _ask_again(self) -> None:
        self._wanted = 0
        self._news.set()

    async def _received(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status")
        if status is None:
            self._wanted -= 1
            self._messages.append(message)
        elif status != "100":
            self._wanted = 0
            # 503: the consumer has no responder; 409 has several meanings, one of which is that it was deleted.
            self._lost = status == "503" or (status == "409" and "Deleted" in (message.headers or {}).get("Description", ""))
        self._news.set()
