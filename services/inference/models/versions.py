"""Prepares versions in the background: fetches, prepares and checks them, keeps them while they are needed, drops them afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from services.inference.models import metrics
from services.inference.models.golden import CheckReport
from sfumato.errors import BrokenWeights, Diverged, InvalidInput, MissingWeights, NotFound, Unavailable
from sfumato.lora.adapter import Adapter, combine
from sfumato.registry.client import RegistryClient
from sfumato.registry.records import Version
from sfumato.runtime.models.adapters import decode_adapter

log = logging.getLogger(__name__)

UNUSABLE = (BrokenWeights, MissingWeights, InvalidInput, Diverged, NotFound)
"""Errors that mean the version cannot be served; any other error is not the version's fault."""


class VersionEngine(Protocol):
    """The part of an engine that the catalog uses; see `services.inference.painting.engine`. Calls may be slow and run in a thread."""

    @property
    def extras(self) -> Collection[str]:
        """Names of the loaded adapters."""
        ...

    def prepare(self, version: str, adapter: Adapter | None) -> None:
        """Prepare a version; raises InvalidInput when the adapter does not fit the model."""
        ...

    def drop(self, version: str) -> None:
        """Drop a version that is no longer used."""
        ...

    def load_extra(self, name: str, adapter: Adapter) -> None:
        """Load an adapter that requests may add to a version."""
        ...

    def hold(self, extras: Sequence[tuple[str, float]]) -> AbstractContextManager[object]:
        """Keep loaded adapters while the context is open; raises NotFound when one is not loaded. Returns at once."""
        ...


@dataclass(slots=True, eq=False)
class PreparedVersion:
    """A version that is ready; ``held`` counts its leases."""

    version: Version
    held: int = 0

    @property
    def id(self) -> str:
        """The version's full id."""
        return self.version.id


class VersionRefused(Exception):
    """The version must not be served, and why. Only the catalog sees this exception."""


Check = Callable[[Version], Awaitable[CheckReport]]


class PreparedVersions:
    """The versions that are ready in the engine.

    One thread calls the engine to prepare and drop versions, in order. Of the unused versions the ``keep`` last used ones stay, so that a
    rollback needs no preparation.
    """

    def __init__(self, registry: RegistryClient, engine: VersionEngine, base: str, check: Check, keep: int) -> None:
        """``base`` is the id of the engine's base model."""
        self._registry, self._engine, self._base, self._check, self._keep = registry, engine, base, check, keep
        self._ready: dict[str, PreparedVersion] = {}
        self._coming: dict[str, asyncio.Task[PreparedVersion]] = {}
        self._awaited: Counter[str] = Counter()
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="preparing")

    def get(self, id: str) -> PreparedVersion | None:
        """A ready version, or None."""
        return self._ready.get(id)

    async def ready(self, id: str) -> PreparedVersion:
        """A version, prepared first when necessary; concurrent calls share one preparation.

        Raises:
            VersionRefused: it failed its check, or cannot be used with this base.
            Unavailable: the registry or the scoring service does not answer; the version is not judged.
        """
        if found := self._ready.get(id):
            return found
        if id not in self._coming:
            task = self._coming[id] = asyncio.create_task(self._prepare(id))
            task.add_done_callback(partial(self._came, id))
        self._awaited[id] += 1  # so that it is not dropped before all waiting calls have it
        try:
            return await asyncio.shield(self._coming[id])
        finally:
            self._awaited[id] -= 1

    @asynccontextmanager
    async def extras(self, wanted: Sequence[tuple[str, float]]) -> AsyncIterator[None]:
        """Keep versions' adapters loaded while the context is open, to be added to other versions.

        Raises: as `load_extra`.
        """
        with ExitStack() as held:
            for extra in wanted:
                while True:
                    await self.load_extra(extra[0])
                    with suppress(NotFound):  # unloaded for another one in between: load it again
                        held.enter_context(self._engine.hold([extra]))
                        break
            yield

    async def load_extra(self, id: str) -> None:
        """Load a version's adapter, to be added to other versions; unless it is held, it stays while the engine has room.

        Raises:
            InvalidInput: it has another base model, is larger than the whole budget, or is a base model.
            Busy: the adapters in use leave no room for it.
        """
        if id in self._engine.extras:
            return
        version, adapter = await asyncio.to_thread(self._fetch, id)
        if adapter is None:
            raise InvalidInput("model", f"version {version.id[:12]} is the base model itself, and no adapter.")
        await asyncio.get_running_loop().run_in_executor(self._lane, self._engine.load_extra, id, adapter)

    def release(self, found: PreparedVersion) -> None:
        """End one lease; see `let_go`."""
        found.held -= 1
        if self._ready.get(found.id) is found:
            self._ready[found.id] = self._ready.pop(found.id)  # used last

    def let_go(self, needed: Collection[str]) -> None:
        """Drop the unused versions, except those ``needed`` and the ``keep`` last used ones."""
        idle = [id for id, found in self._ready.items() if not found.held and not self._awaited[id] and id not in needed]
        for id in idle[: max(0, len(idle) - self._keep)]:
            del self._ready[id]
            self._drop(id)
        metrics.prepared.set(len(self._ready))

    async def close(self) -> None:
        """Cancel all preparations, and drop all versions."""
        for task in tuple(self._coming.values()):
            task.cancel()
        await asyncio.gather(*self._coming.values(), return_exceptions=True)
        for id in tuple(self._ready):
            self._drop(id)
        self._ready.clear()
        await asyncio.to_thread(self._lane.shutdown)

    def _came(self, id: str, task: asyncio.Task[PreparedVersion]) -> None:
        del self._coming[id]
        if not task.cancelled() and (error := task.exception()):
            log.info("Version %s could not be prepared: %s", id, error)

    async def _prepare(self, id: str) -> PreparedVersion:
        loop = asyncio.get_running_loop()
        try:
            version, adapter = await asyncio.to_thread(self._fetch, id)
            await loop.run_in_executor(self._lane, self._engine.prepare, id, adapter)
        except UNUSABLE as error:
            raise VersionRefused(str(error)) from error
        except RuntimeError as error:  # from PyTorch, such as out of memory
            raise VersionRefused(f"it could not be prepared: {error}") from error
        try:
            report = await self._check(version)
        except BaseException:
            self._drop(id)
            raise
        for metric, value in report.scores.items():
            metrics.score.labels(metrics.short(id), metric).set(value)
        if report.refused:
            self._drop(id)
            raise VersionRefused(report.refused)
        if report.unscored and self._ready:
            self._drop(id)
            raise Unavailable(f"version {id[:12]} waits for its scores: {report.unscored}")
        if report.unscored:  # there is no other version: a version with finite pictures is better than none
            log.warning("Version %s is served without scores, because there is no other one: %s", id, report.unscored)
        found = self._ready[id] = PreparedVersion(version)
        metrics.prepared.set(len(self._ready))
        return found

    def _fetch(self, id: str) -> tuple[Version, Adapter | None]:
        version = self._registry.get(id)
        if version.base.id != self._base:
            what = f"is of the base model {version.base.name} ({version.base.id[:12]}), and this service has {self._base[:12]}."
            raise InvalidInput("model", what, hint="Was it trained on other weights?")
        if not version.parts:
            return version, None
        adapters = [decode_adapter(self._registry.adapter(part.adapter)) for part in version.parts]
        return version, combine(adapters, [part.weight for part in version.parts])

    def _drop(self, id: str) -> None:
        self._lane.submit(self._engine.drop, id).add_done_callback(_dropped)


def _dropped(done: Future[None]) -> None:
    """Log the error of a drop; it runs in the background."""
    error = done.exception()
    if error is not None:
        log.error("A version could not be dropped: %r", error)
