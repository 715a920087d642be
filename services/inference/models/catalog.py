"""Chooses the version that answers a request: follows aliases, changes versions between requests, splits traffic with a canary.

    catalog = Catalog(registry, engine, check, served=Served("vista", base_id))
    catalog.start()
    async with catalog.lease("vista+style-x:0.6") as lease:                       # raises NotFound, InvalidInput, Unavailable
        painted = await engine.paint(wanted, lease.version, lease.extras)
        lease.done(seconds, ok=True, image=painted.image, prompt=wanted.request.prompt)

A lease holds one version from beginning to end. The version of an alias changes between leases, after the new version is prepared and
has passed its check; the old one is dropped after its last lease. When a version fails its check, the old one stays. Everything runs in
one event loop, except fetching, preparing and watching, which run in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from tenacity import AsyncRetrying, RetryCallState, wait_exponential

from services.inference.models import metrics
from services.inference.models.aliases import AliasWatcher
from services.inference.models.canary import CanaryRule
from services.inference.models.canary_traffic import CanaryTraffic
from services.inference.models.golden import ImageScorer
from services.inference.models.names import HINT, ModelReference, read_name
from services.inference.models.versions import Check, PreparedVersion, PreparedVersions, VersionEngine, VersionRefused
from sfumato.errors import InvalidInput, NotFound, SfumatoError, Unavailable
from sfumato.registry.client import RegistryClient
from sfumato.types import Image

log = logging.getLogger(__name__)

PAUSE = 2.0
"""Seconds before the first retry when the registry or the scoring service is away; doubled with every retry."""
LONGEST_PAUSE = 60.0
EARLIER = 3
"""Earlier versions of an alias that are tried, newest first, when a service starts on a refused version."""


@dataclass(frozen=True, slots=True)
class ServedBase:
    """What a catalog serves: the base's name as clients write it, the id of its weights, and the default alias.

    ``keep`` unused versions stay prepared, the last used ones, so that a rollback is immediate.
    """

    name: str
    base: str
    alias: str = "production"
    keep: int = 1


@dataclass(frozen=True, slots=True)
class ListedModel:
    """An entry of ``GET /v1/models``.

    ``id`` is the name for clients, ``version`` the version that answers (empty: none yet), ``root`` the base's name, ``parent`` the
    version it follows in its lineage (empty: unknown), ``created`` in seconds since 1970. ``refused`` says why the version that the
    alias points at does not answer.
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
    """One version for the length of a request: its full id, adapters on top by id with weights, the alias that led to it, its base."""

    version: str
    extras: tuple[tuple[str, float], ...]
    alias: str
    base: str
    _traffic: CanaryTraffic = field(repr=False)

    def done(self, seconds: float, ok: bool, image: Image | None = None, prompt: str = "") -> None:
        """Count the request: ``ok`` is False when the service failed, not when the request was refused or cancelled.

        ``image`` and ``prompt`` may be scored when there is a canary and no adapter was added to the version.
        """
        metrics.requests.labels(metrics.short(self.version), "ok" if ok else "failed").inc()
        if ok:
            metrics.seconds.labels(metrics.short(self.version)).observe(seconds)
        if self.alias and not self.extras:
            self._traffic.note(self.version, seconds, ok, image, prompt)


class Catalog:
    """See the module. It is made and used in one running event loop."""

    def __init__(
        self,
        registry: RegistryClient,
        engine: VersionEngine,
        check: Check,
        served: ServedBase,
        canary: CanaryRule | None = None,
        scores: ImageScorer | None = None,
    ) -> None:
        """The catalog owns ``registry`` and closes it.

        Args:
            registry: holds the versions.
            engine: prepares and drops versions.
            check: checks a prepared version; see `GoldenCheck`.
            served: what is served.
            canary: a second alias and its share of the requests that name no alias; None: there is no canary.
            scores: scores the canary's pictures.
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
        """Start to follow the registry; returns at once. `ready` says whether a version is served, `trouble` why not."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._follow(alias)) for alias in self._followed]
        self._traffic.start()
        self._watcher.start()

    async def close(self) -> None:
        """Stop following and drop all versions; all leases should have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._traffic.close()
        await self._versions.close()
        await asyncio.to_thread(self._watcher.stop)

    @property
    def ready(self) -> bool:
        """Whether the served alias has a prepared version."""
        return self._served.alias in self._behind

    @property
    def trouble(self) -> str:
        """Why no version is served, or why it is not the one that the registry names; empty without a problem."""
        alias = self._served.alias
        if alias in self._refused:
            id, reason = self._refused[alias]
            return f"{alias} points at version {id[:12]}, which is refused: {reason}"
        if not self.ready and not self._watcher.trouble and alias not in self._aliases:
            return f"the registry has no alias {alias}; let it point at a version: sfumato models promote VERSION --to {alias}"
        return self._watcher.trouble or self._held_up.get(alias, "") or ("" if self.ready else "the first version is being prepared")

    @asynccontextmanager
    async def lease(self, model: str = "") -> AsyncIterator[VersionLease]:
        """Hold the version that a request's ``model`` names, while the context is open; see `read_name`.

        Raises:
            NotFound: there is no such model, version or adapter.
            InvalidInput: field ``model``: a weight out of range, or a version or adapter that does not fit the base.
            Unavailable: no version is ready, or the registry is needed and does not answer.
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
        """The models for ``GET /v1/models``: the served name, the followed aliases, and all other aliases of the registry."""
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
        """The version of a followed alias; without awaiting, so that it cannot change before it is held."""
        if asked.version:
            return "", None
        if asked.alias:
            return (asked.alias, self._behind.get(asked.alias)) if asked.alias in self._followed else ("", None)
        stable, canary = self._behind.get(self._served.alias), self._behind.get(self._rule.alias)
        if stable is not None and canary is not None and canary is not stable and self._traffic.split.next():
            return self._rule.alias, canary
        return self._served.alias, stable

    async def _meant(self, asked: ModelReference) -> str:
        """The full id of a version that no followed alias points at."""
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
        """The full id of a version that is used as an adapter."""
        return self._aliases.get(name) or (await asyncio.to_thread(self._registry.get, name)).id

    def _tidy(self) -> None:
        self._versions.let_go({found.id for found in self._behind.values()})

    # --- following ---

    def _told(self, aliases: Mapping[str, str]) -> None:
        """Receives where all aliases point; called in the watcher's thread."""
        self._loop.call_soon_threadsafe(partial(self._note, dict(aliases)))

    def _note(self, aliases: dict[str, str]) -> None:
        before, self._aliases = self._aliases, aliases
        self._moved_at = time.perf_counter()
        for alias in self._followed:
            if aliases.get(alias) != before.get(alias):
                self._moves[alias].set()

    async def _follow(self, alias: str) -> None:
        """Serve what the registry's alias points at until cancelled; of several moves in between only the last one counts.

        Every error is retried: after an unknown one, too, the alias must still be followed.
        """

        def note(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            unknown = error if not isinstance(error, SfumatoError) else None
            log.warning("The alias %s cannot be followed yet: %s", alias, error, exc_info=unknown)
            self._held_up[alias] = str(error)

        waiting = wait_exponential(multiplier=PAUSE, max=LONGEST_PAUSE)
        while True:
            await self._moves[alias].wait()
            async for attempt in AsyncRetrying(wait=waiting, before_sleep=note):
                with attempt:
                    self._moves[alias].clear()
                    await self._turn_to(alias, self._aliases.get(alias, ""))

    async def _turn_to(self, alias: str, id: str) -> None:
        """Serve a version for an alias, or refuse it and keep the present one; without a present one, go back to the last good one."""
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
            log.error("Alias %s: version %s is refused: %s; %s stays.", alias, id, refused, current.id if current else "no version")
            if current is None and alias == self._served.alias:
                await self._go_back(alias, id)
            return
        metrics.swaps.labels(alias, "served").inc()
        metrics.swap_seconds.observe(time.perf_counter() - begun)
        await self._find_parent(id)

    async def _go_back(self, alias: str, refused: str) -> None:
        """Serve the newest earlier version of an alias that passes its check."""
        history = await asyncio.to_thread(self._registry.history, alias)
        earlier = dict.fromkeys(move.version for move in reversed(history) if move.version != refused)
        for id in list(earlier)[:EARLIER]:
            try:
                return self._put(alias, await self._versions.ready(id))
            except VersionRefused as error:
                log.error("Alias %s: the earlier version %s is refused too: %s", alias, id, error)

    def _put(self, alias: str, found: PreparedVersion | None) -> None:
        """Use this version for the alias from the next lease on."""
        self._held_up.pop(alias, None)
        before = self._behind.pop(alias, None)
        if before is not None:
            metrics.serving.remove(alias, metrics.short(before.id))
        if found is not None:
            self._behind[alias] = found
            metrics.serving.labels(alias, metrics.short(found.id)).set(1)
            log.info("Alias %s: version %s is served, after %s.", alias, found.id, before.id if before else "no version")
        stable, canary = self._behind.get(self._served.alias), self._behind.get(self._rule.alias)
        self._traffic.begin(stable and stable.id, canary and canary.id)
        self._tidy()

    async def _find_parent(self, id: str) -> None:
        """Look up which version this one follows, for the listing."""
        graph = await asyncio.to_thread(self._registry.lineage, id, 1)
        followed = [edge.source for edge in graph.edges if edge.node == f"version:{id}" and edge.relation == "follows"]
        self._parents[id] = followed[0].removeprefix("version:") if followed else ""
