"""Which version answers a request: aliases followed, versions changed between requests, a canary beside.

    catalog = Catalog(registry, engine, check, served=Served("vista", base_id))
    catalog.start()
    async with catalog.lease("vista+style-x:0.6") as lease:                       # raises NotFound, InvalidInput, Unavailable
        painted = await engine.paint(wish, lease.version, lease.extras)
        lease.done(seconds, ok=True, image=painted.image, prompt=wish.request.prompt)

A lease is of one version from its first moment to its last; the version behind an alias changes between leases, once the new one
is prepared and has passed its check, and the old one is let go of after its last lease. A version that fails stays out, the old one
stays in. All of this is in one event loop; only fetching, preparing and watching are in threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog

from services.inference.models import metrics
from services.inference.models.aliases import AliasWatcher
from services.inference.models.canary import CanaryRule
from services.inference.models.canary_traffic import CanaryTraffic
from services.inference.models.golden import Scorer
from services.inference.models.names import HINT, ModelReference, read_name
from services.inference.models.versions import Check, PreparedVersion, PreparedVersions, VersionEngine, VersionRefused
from sfumato.errors import InvalidInput, NotFound, SfumatoError, Unavailable
from sfumato.registry.client import RegistryClient
from sfumato.types import Image

log = structlog.get_logger(__name__)

PAUSE = 2.0
"""Seconds before what failed for want of the registry or the scorers is tried again; doubled each time."""
LONGEST_PAUSE = 60.0
EARLIER = 3
"""Places of an alias that are tried, newest first, where a service starts on one that is refused."""


@dataclass(frozen=True, slots=True)
class ServedBase:
    """What a catalog serves: the base's name as clients write it, the id of its weights, and the alias that stands for it.

    ``keep`` versions that nobody needs any more stay prepared, those used last: going back to one takes no time.
    """

    name: str
    base: str
    alias: str = "production"
    keep: int = 1


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as ``GET /v1/models`` tells of it.

    ``id`` is what a client writes, ``version`` what answers then (empty: nothing yet), ``root`` the base's name, ``parent`` the version
    it follows in its lineage (empty: none is told), ``created`` in seconds since 1970. ``refused`` says why what the alias points
    at is not what answers.
    """

    id: str
    alias: str
    version: str
    root: str
    parent: str
    created: float
    refused: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class VersionLease:
    """One version for the length of a request: its full id, adapters on top by id with weights, by which alias, on which base."""

    version: str
    extras: tuple[tuple[str, float], ...]
    alias: str
    base: str
    _traffic: CanaryTraffic = field(repr=False)

    def done(self, seconds: float, ok: bool, image: Image | None = None, prompt: str = "") -> None:
        """Tell how it went: ``ok`` is False where the service failed, not where the request was refused or given up.

        ``image`` and ``prompt`` may be scored, where a canary is on and nothing was added to the version.
        """
        metrics.requests.labels(metrics.short(self.version), "ok" if ok else "failed").inc()
        if ok:
            metrics.seconds.labels(metrics.short(self.version)).observe(seconds)
        if self.alias and not self.extras:
            self._traffic.note(self.version, seconds, ok, image, prompt)


class Catalog:
    """See the module. Make it, and use it, in one running event loop."""

    def __init__(
        self,
        registry: RegistryClient,
        engine: VersionEngine,
        check: Check,
        served: ServedBase,
        canary: CanaryRule | None = None,
        scores: Scorer | None = None,
    ) -> None:
        """``registry`` is the catalog's from now on, and closed with it.

        Args:
            registry: of the versions.
            engine: paints with what it is told to prepare.
            check: of a version that is prepared; see `GoldenCheck`.
            served: what is served.
            canary: a second alias and its share of the requests that name no alias; None: there is none.
            scores: for the canary's pictures.
        """
        self._registry, self._served, self._rule = registry, served, canary or CanaryRule(weight=0.0)
        self._versions = PreparedVersions(registry, engine, served.base, check, served.keep)
        self._traffic = CanaryTraffic(self._rule, registry, served.alias, scores)
        self._watcher = AliasWatcher(registry, self._told)
        self._followed = (served.alias, self._rule.alias) if self._rule.weight else (served.alias,)
        self._aliases: dict[str, str] = {}
        self._behind: dict[str, PreparedVersion] = {}
        self._refused: dict[str, tuple[str, str]] = {}
        self._moves = {alias: asyncio.Event() for alias in self._followed}
        self._moved_at = 0.0
        self._held_up: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to follow the registry; returns at once. `ready` tells when there is something to serve, `trouble` why not yet."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._follow(alias)) for alias in self._followed]
        self._traffic.start()
        self._watcher.start()

    async def close(self) -> None:
        """End following and let go of all versions; leases should be over."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._traffic.close()
        await self._versions.close()
        await asyncio.to_thread(self._watcher.stop)

    @property
    def ready(self) -> bool:
        """Whether the served alias has a version that can be painted with."""
        return self._served.alias in self._behind

    @property
    def trouble(self) -> str:
        """Why there is nothing to serve, or why what is served is not what the registry says; empty where all is well."""
        alias = self._served.alias
        if alias in self._refused:
            id, reason = self._refused[alias]
            return f"{alias} points at version {id[:12]}, which is refused: {reason}"
        if not self.ready and not self._watcher.trouble and alias not in self._aliases:
            return f"the registry has no alias {alias}; let it point at a version: sfumato models promote VERSION --to {alias}"
        return self._watcher.trouble or self._held_up.get(alias, "") or ("" if self.ready else "the first version is being prepared")

    @asynccontextmanager
    async def lease(self, model: str = "") -> AsyncIterator[VersionLease]:
        """The version that a request's ``model`` means, for as long as the block lasts; see `read_name`.

        Raises:
            NotFound: there is no such model, version or adapter.
            InvalidInput: field ``model``: a weight out of range, a version or adapter that cannot be used here.
            Unavailable: nothing can be served yet, or the registry is needed and does not answer.
        """
        asked = read_name(model, self._served.name)
        alias, found = self._standing(asked)
        while found is None:
            id = await self._meant(asked)
            await self._made(id)
            found = self._versions.get(id)
        found.held += 1
        try:
            extras = tuple([(await self._adapter(name), weight) for name, weight in asked.extras])
            async with self._versions.extras(extras):
                yield VersionLease(found.id, extras, alias, self._served.name, self._traffic)
        finally:
            self._versions.release(found)
            self._tidy()

    def listing(self) -> tuple[ListedModel, ...]:
        """What can be asked for: the served name, and every alias of the registry that is followed or may be asked for."""
        name, followed = self._served.name, [alias for alias in self._followed if alias in self._aliases or alias in self._behind]
        others = sorted(set(self._aliases) - set(followed))
        listed = [self._listed(f"{name}@{alias}", alias) for alias in [*followed, *others]]
        return (self._listed(name, self._served.alias), *listed) if followed else tuple(listed)

    def _listed(self, id: str, alias: str) -> ListedModel:
        meant = "" if alias in self._followed else self._aliases[alias]
        found = self._behind.get(alias) or self._versions.get(meant)
        refused = self._refused.get(alias, ("", ""))[1]
        if found is None:
            return ListedModel(id, alias, meant, self._served.name, "", 0.0, refused)
        version = found.version
        return ListedModel(id, alias, version.id, self._served.name, self._parents.get(version.id, ""), version.created, refused)

    # --- which version ---

    def _standing(self, asked: ModelReference) -> tuple[str, PreparedVersion | None]:
        """The version that is behind a followed alias now: no waiting, so nothing changes between asking and holding it."""
        if asked.version:
            return "", None
        if asked.alias:
            return (asked.alias, self._behind.get(asked.alias)) if asked.alias in self._followed else ("", None)
        stable, canary = self._behind.get(self._served.alias), self._behind.get(self._rule.alias)
        if stable is not None and canary is not None and canary is not stable and self._traffic.split.next():
            return self._rule.alias, canary
        return self._served.alias, stable

    async def _meant(self, asked: ModelReference) -> str:
        """The full id of a version that stands behind no followed alias."""
        if asked.version:
            return (await asyncio.to_thread(self._registry.get, asked.version)).id
        alias = asked.alias or self._served.alias
        if alias in self._followed and alias not in self._behind and (not asked.alias or alias in self._aliases):
            raise Unavailable(f"{self._served.name}@{alias} cannot be served yet: {self.trouble or 'it is being prepared'}.")
        if alias not in self._aliases:
            raise NotFound(f"There is no model {self._served.name}@{alias}.", hint=HINT)
        return self._aliases[alias]

    async def _made(self, id: str) -> None:
        try:
            await self._versions.ready(id)
        except VersionRefused as error:
            raise InvalidInput("model", f"version {id[:12]} is not served: {error}") from error

    async def _adapter(self, name: str) -> str:
        """The full id of a version that is named as an adapter."""
        return self._aliases.get(name) or (await asyncio.to_thread(self._registry.get, name)).id

    def _tidy(self) -> None:
        self._versions.let_go({found.id for found in self._behind.values()})

    # --- following ---

    def _told(self, aliases: Mapping[str, str]) -> None:
        """Where all aliases point; called from the thread that watches."""
        self._loop.call_soon_threadsafe(partial(self._note, dict(aliases)))

    def _note(self, aliases: dict[str, str]) -> None:
        before, self._aliases = self._aliases, aliases
        self._moved_at = time.perf_counter()
        for alias in self._followed:
            if aliases.get(alias) != before.get(alias):
                self._moves[alias].set()

    async def _follow(self, alias: str) -> None:
        """Serve what the registry's alias points at, for ever; of several moves meanwhile the last one counts."""
        pause = PAUSE
        while True:
            await self._moves[alias].wait()
            self._moves[alias].clear()
            try:
                await self._turn_to(alias, self._aliases.get(alias, ""))
                pause = PAUSE
            except Exception as error:  # whatever it is, an alias that is not followed any more would be worse
                unknown = not isinstance(error, SfumatoError)
                log.warning("an alias cannot be followed yet", alias=alias, trouble=str(error), exc_info=unknown)
                self._held_up[alias] = str(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                self._moves[alias].set()

    async def _turn_to(self, alias: str, id: str) -> None:
        """Put a version behind an alias, or refuse it and leave what is there; at first go back to the last good one."""
        begun, current = self._moved_at, self._behind.get(alias)
        self._refused.pop(alias, None)
        if current is not None and current.id == id:
            self._held_up.pop(alias, None)
            return
        if not id:
            return self._put(alias, None)
        try:
            self._put(alias, await self._versions.ready(id))
        except VersionRefused as refused:
            self._refused[alias] = (id, str(refused))
            metrics.swaps.labels(alias, "refused").inc()
            log.error("a version is refused", alias=alias, version=id, reason=str(refused), stays=current and current.id)
            if current is None and alias == self._served.alias:
                await self._go_back(alias, id)
            return
        metrics.swaps.labels(alias, "served").inc()
        metrics.swap_seconds.observe(time.perf_counter() - begun)
        await self._find_parent(id)

    async def _go_back(self, alias: str, refused: str) -> None:
        """Serve the newest earlier place of an alias that passes."""
        history = await asyncio.to_thread(self._registry.history, alias)
        earlier = dict.fromkeys(move.version for move in reversed(history) if move.version != refused)
        for id in list(earlier)[:EARLIER]:
            try:
                return self._put(alias, await self._versions.ready(id))
            except VersionRefused as error:
                log.error("an earlier version is refused too", alias=alias, version=id, reason=str(error))

    def _put(self, alias: str, found: PreparedVersion | None) -> None:
        """From the next lease on, this version is behind the alias."""
        self._held_up.pop(alias, None)
        before = self._behind.pop(alias, None)
        if before is not None:
            metrics.serving.remove(alias, metrics.short(before.id))
        if found is not None:
            self._behind[alias] = found
            metrics.serving.labels(alias, metrics.short(found.id)).set(1)
            log.info("a version is served", alias=alias, version=found.id, before=before and before.id)
        stable, canary = self._behind.get(self._served.alias), self._behind.get(self._rule.alias)
        self._traffic.begin(stable and stable.id, canary and canary.id)
        self._tidy()

    async def _find_parent(self, id: str) -> None:
        """Note which version this one follows, for the listing."""
        graph = await asyncio.to_thread(self._registry.lineage, id, 1)
        followed = [edge.source for edge in graph.edges if edge.node == f"version:{id}" and edge.relation == "follows"]
        self._parents[id] = followed[0].removeprefix("version:") if followed else ""
