"""Versions made ready beside painting: fetched, prepared by the engine, checked, kept while they are needed, dropped after."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from services.inference.models import metrics
from services.inference.models.golden import CheckReport
from sfumato.errors import BrokenWeights, Diverged, InvalidInput, MissingWeights, NotFound, Unavailable
from sfumato.lora.adapter import Adapter, combine
from sfumato.registry.client import RegistryClient
from sfumato.registry.records import Version
from sfumato.runtime.adapters import decode_adapter

log = structlog.get_logger(__name__)

UNUSABLE = (BrokenWeights, MissingWeights, InvalidInput, Diverged, NotFound)
"""What says that a version cannot be served; anything else says nothing of it."""


class VersionEngine(Protocol):
    """What an engine does for versions; see `services.inference.painting.engine`. Each may take a while, and is called in a thread."""

    @property
    def extras(self) -> Collection[str]:
        """Names of the adapters that are loaded."""
        ...

    def prepare(self, version: str, adapter: Adapter | None) -> None:
        """Make a version ready to paint with; raises InvalidInput where the adapter does not fit the model."""
        ...

    def drop(self, version: str) -> None:
        """Let go of it: nobody paints with it any more."""
        ...

    def load_extra(self, name: str, adapter: Adapter) -> None:
        """Have an adapter ready that requests may add to a version."""
        ...

    def hold(self, extras: Sequence[tuple[str, float]]) -> AbstractContextManager[object]:
        """Keep loaded adapters while the context is open; raises NotFound where one is not loaded. It takes no time."""
        ...


@dataclass(slots=True, eq=False)
class PreparedVersion:
    """A version that can be painted with; ``held`` counts those who do."""

    version: Version
    held: int = 0

    @property
    def id(self) -> str:
        """The version's full id."""
        return self.version.id


class VersionRefused(Exception):
    """A version that is not to be served, and why. It never leaves this service's catalog."""


Check = Callable[[Version], Awaitable[CheckReport]]


class PreparedVersions:
    """The versions that the engine has ready.

    What the engine is asked to prepare or to drop it is asked by one thread, in order. Of those that nobody holds or needs the
    ``keep`` used last stay, so that going back to one takes no preparation.
    """

    def __init__(self, registry: RegistryClient, engine: VersionEngine, base: str, check: Check, keep: int) -> None:
        """``base`` is the id of the base model that the engine has."""
        self._registry, self._engine, self._base, self._check, self._keep = registry, engine, base, check, keep
        self._ready: dict[str, PreparedVersion] = {}
        self._coming: dict[str, asyncio.Task[PreparedVersion]] = {}
        self._awaited: Counter[str] = Counter()
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="preparing")

    def get(self, id: str) -> PreparedVersion | None:
        """A version that is ready."""
        return self._ready.get(id)

    async def ready(self, id: str) -> PreparedVersion:
        """A version, made ready first where it is not; those who ask for one at once wait for the same preparation.

        Raises:
            VersionRefused: it failed its check, or cannot be used with this base.
            Unavailable: the registry or the scoring service does not answer; nothing is known of the version.
        """
        if found := self._ready.get(id):
            return found
        if id not in self._coming:
            task = self._coming[id] = asyncio.create_task(self._prepare(id))
            task.add_done_callback(partial(self._came, id))
        self._awaited[id] += 1  # so that nobody lets go of it before those who wait for it are told
        try:
            return await asyncio.shield(self._coming[id])
        finally:
            self._awaited[id] -= 1

    @asynccontextmanager
    async def extras(self, wanted: Sequence[tuple[str, float]]) -> AsyncIterator[None]:
        """Have versions' adapters ready to be added to others, for as long as the block lasts.

        Raises: as `load_extra`.
        """
        with ExitStack() as held:
            for extra in wanted:
                while True:
                    await self.load_extra(extra[0])
                    with suppress(NotFound):  # it had to make room for another one meanwhile: once more
                        held.enter_context(self._engine.hold([extra]))
                        break
            yield

    async def load_extra(self, id: str) -> None:
        """Have a version's adapter ready to be added to others; unless it is held, it stays while the engine has room.

        Raises:
            InvalidInput: it is of another base model, is larger than all such adapters may be together, or is no adapter.
            Busy: adapters in use leave no room for it.
        """
        if id in self._engine.extras:
            return
        version, adapter = await asyncio.to_thread(self._fetch, id)
        if adapter is None:
            raise InvalidInput("model", f"version {version.id[:12]} is the base model itself, and no adapter.")
        await asyncio.get_running_loop().run_in_executor(self._lane, self._engine.load_extra, id, adapter)

    def release(self, found: PreparedVersion) -> None:
        """One who held it does no more; see `let_go`."""
        found.held -= 1
        if self._ready.get(found.id) is found:
            self._ready[found.id] = self._ready.pop(found.id)  # used last

    def let_go(self, needed: Collection[str]) -> None:
        """Drop what nobody holds, but for those ``needed`` and the few that were used last."""
        idle = [id for id, found in self._ready.items() if not found.held and not self._awaited[id] and id not in needed]
        for id in idle[: max(0, len(idle) - self._keep)]:
            del self._ready[id]
            self._drop(id)
        metrics.prepared.set(len(self._ready))

    async def close(self) -> None:
        """Wait for what is being prepared to end, and drop everything."""
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
            log.info("a version could not be made ready", version=id, reason=str(error))

    async def _prepare(self, id: str) -> PreparedVersion:
        loop = asyncio.get_running_loop()
        try:
            version, adapter = await asyncio.to_thread(self._fetch, id)
            await loop.run_in_executor(self._lane, self._engine.prepare, id, adapter)
        except UNUSABLE as error:
            raise VersionRefused(str(error)) from error
        except RuntimeError as error:  # PyTorch's, such as that there is no memory for it
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
        if report.unscored:  # nothing else can be served: better this, whose pictures are finite, than nothing
            log.warning("the first version is served without scores", version=id, reason=report.unscored)
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
    """Say what went wrong with a drop that nobody waits for."""
    error = done.exception()
    if error is not None:
        log.error("a version could not be dropped", error=repr(error))
