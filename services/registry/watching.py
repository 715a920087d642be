"""Streams events to any number of watchers, from the table that all replicas write to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from prometheus_client import Gauge

from services.registry.engine import Registry
from sfumato.errors import InvalidInput
from sfumato.registry.records import RegistryEvent

watchers = Gauge("sfumato_registry_watchers", "Watchers at this replica.")


class Watching:
    """Polls the number of the last event, once for all watchers; a watcher that is behind reads the events it lacks.

    Events get their numbers under the clock's lock, which is held until they are committed: no event becomes visible below one that was
    seen. So reading the events after the last one is enough, whichever replica wrote them, and there is no state per watcher.
    """

    def __init__(self, registry: Callable[[], Registry], interval: float) -> None:
        """``registry`` returns the engine, or raises when watching has to end; ``interval`` is in seconds."""
        self._registry, self._interval = registry, interval
        self._latest = 0
        self._look: asyncio.Task[None] | None = None

    async def begin(self, after: int | None) -> int:
        """The number at which a watch starts: ``after``; None: the number of the last event.

        Raises:
            InvalidInput: there are fewer events than ``after``.
        """
        latest = await asyncio.to_thread(self._registry().latest)
        if after is not None and after > latest:
            raise InvalidInput("after", f"there are {latest} events, not {after}.", hint="Is it another database, or a copy? Begin at 0.")
        return latest if after is None else after

    async def events(self, after: int) -> AsyncIterator[RegistryEvent]:
        """The events after number ``after``, as they come, until the watcher or the registry ends."""
        with watchers.track_inprogress():
            while True:
                found = await asyncio.to_thread(self._registry().events, after)
                for event in found:
                    yield event
                    after = event.number
                while not found and self._latest <= after:
                    await self._looked()

    async def _looked(self) -> None:
        """Wait for the next poll, which all watchers share."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_again())
            self._look.add_done_callback(lambda look: look.cancelled() or look.exception())  # retrieved, in case no watcher is left
        await asyncio.shield(self._look)

    async def _look_again(self) -> None:
        await asyncio.sleep(self._interval)
        self._latest = await asyncio.to_thread(self._registry().latest)
