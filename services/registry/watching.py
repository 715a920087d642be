"""Events as they come, to any number of those who wait for them, from the table that all replicas write to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from prometheus_client import Gauge

from services.registry.engine import Registry
from sfumato.errors import InvalidInput
from sfumato.registry.records import RegistryEvent

watchers = Gauge("sfumato_registry_watchers", "Callers that wait for events at this replica.")


class Watching:
    """Looks for the last event's number every so often, once for all who wait; whoever is behind it fetches what it lacks.

    Events get their numbers under the clock's lock, which is held until they are committed: none appears below one that was seen. So
    to ask for what comes after the last one is enough, whichever replicas wrote them, and nothing need be remembered of a caller.
    """

    def __init__(self, registry: Callable[[], Registry], interval: float) -> None:
        """``registry`` gives the engine, or raises when watching is to end; ``interval`` is in seconds."""
        self._registry, self._interval = registry, interval
        self._latest = 0
        self._look: asyncio.Task[None] | None = None

    async def begin(self, after: int | None) -> int:
        """Where a caller begins who knows everything up to ``after``; None: who wants only what comes from now on.

        Raises:
            InvalidInput: there are not so many events.
        """
        latest = await asyncio.to_thread(self._registry().latest)
        if after is not None and after > latest:
            raise InvalidInput("after", f"there are {latest} events, not {after}.", hint="Is it another database, or a copy? Begin at 0.")
        return latest if after is None else after

    async def events(self, after: int) -> AsyncIterator[RegistryEvent]:
        """The events after number ``after``, as they come, until the caller or the registry ends it."""
        with watchers.track_inprogress():
            while True:
                found = await asyncio.to_thread(self._registry().events, after)
                for event in found:
                    yield event
                    after = event.number
                while not found and self._latest <= after:
                    await self._looked()

    async def _looked(self) -> None:
        """Wait for the next look, which is the same for all."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_again())
            self._look.add_done_callback(lambda look: look.cancelled() or look.exception())  # looked at, should nobody be left
        await asyncio.shield(self._look)

    async def _look_again(self) -> None:
        await asyncio.sleep(self._interval)
        self._latest = await asyncio.to_thread(self._registry().latest)
