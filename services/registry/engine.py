"""The registry's engine: immutable versions, their lineage, and the aliases that point at them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.registry import aliases, graph, tables
from services.registry.adapters import VerifiedAdapter, check_base, verified
from services.registry.collecting import garbage, remove
from services.registry.database import Database, Writing
from sfumato.errors import Conflict, InvalidInput, NotFound
from sfumato.registry.models import Merge
from sfumato.registry.records import (
    DIGEST,
    PREFIX,
    Base,
    Collection,
    Edge,
    Lineage,
    Move,
    Node,
    Page,
    RegistryEvent,
    Version,
    WeightedAdapter,
    check_alias,
    check_digest,
    check_metrics,
    check_parts,
    check_text,
    version_id,
)
from sfumato.runtime.artifacts import ArtifactStore

MERGES: tuple[Merge, ...] = ("stack", "mean")
MAX_PAGE = 500
DAY = 86_400.0


class Registry:
    """A registry: a database that any number of processes share, and the artifact store with its adapters."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    def close(self) -> None:
        """Close the database's connections."""
        self._database.close()

    # --- versions ---

    def register(
        self,
        base: Base,
        parts: Sequence[WeightedAdapter] = (),
        *,
        files: Mapping[str, bytes] | None = None,
        lineage: Lineage = Lineage(),  # noqa: B008 (immutable)
        metrics: Mapping[str, float] | None = None,
        note: str = "",
    ) -> Version:
        """Register a version: ``base`` plus every adapter's update times its weight. The same content is the same version.

        Every adapter is verified, and compared with the base's modules when these are known, before anything is stored.

        Args:
            base: the adapters' base model; its modules are stored once they are given.
            parts: adapters by the SHA-256 of their files, in order; none for the base model itself.
            files: bytes by SHA-256, of adapters that are not in the artifact store yet.
            lineage: what it came of; edges of its own node start at ``version:<id>`` (see `version_id`).
            metrics: measured values; like ``note`` they are stored at the first registration only.
            note: a short text.

        Raises:
            InvalidInput: a field cannot be used; an adapter is unusable, not finite, or does not fit the base.
            MissingWeights: an adapter is neither given nor in the store.
            BrokenWeights: an adapter in the store is damaged.
            Conflict: another caller has registered other modules of the base in between.
        """
        parts, files = tuple(parts), files or {}
        check_digest("base", base.id)
        check_parts(parts)
        check_text("base", base.name)
        check_text("note", note)
        numbers = check_metrics(metrics or {})
        base = self._known(base)
        data = {part.adapter: files.get(part.adapter) or self._artifacts.get(part.adapter) for part in parts}
        adapters = [verified(content, digest) for digest, content in data.items()]
        for adapter in adapters:
            if base.modules is not None:
                check_base(adapter, base.modules)
        for content in data.values():
            self._artifacts.put(content)
        id = version_id(base.id, parts)
        with self._database.writing() as writing:
            _keep_base(writing, base)
            for adapter in adapters:
                self._artifacts.put(data[adapter.sha256])  # again, in case a collection ran in between; from here on none can
                _keep_adapter(writing, adapter)
            _keep_version(writing, id, base, parts, numbers, note)
            graph.grow(writing.session, _own_lineage(id, base, parts, lineage))
        return self.get(id)

    def get(self, reference: str) -> Version:
        """A version by alias, id, or a prefix of an id (at least 6 digits).

        Raises:
            NotFound: there is none.
            InvalidInput: the prefix is ambiguous.
        """
        with self._database.reading() as session:
            return _version(session, _resolve(session, reference))

    def resolve(self, reference: str) -> str:
        """The full id of a reference; see `get`."""
        with self._database.reading() as session:
            return _resolve(session, reference)

    def list(self, *, limit: int = 50, following: int = 0, base: str = "") -> Page:
        """Versions, newest first, ``limit`` per page; ``following`` is a page's token, ``base`` filters by the base's id.

        Raises:
            InvalidInput: a limit below 1 or above 500, or a token below 0.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidInput("limit", f"{limit} is not from 1 to {MAX_PAGE}.")
        if following < 0:
            raise InvalidInput("following", f"{following} is no page's token.")
        query = select(tables.VersionRow).order_by(tables.VersionRow.number.desc()).limit(limit + 1)
        if following:
            query = query.where(tables.VersionRow.number <= following)
        if base:
            query = query.where(tables.VersionRow.base_id == base)
        with self._database.reading() as session:
            rows = session.scalars(query).all()
            versions = tuple(_version(session, row.id) for row in rows[:limit])
            return Page(versions, rows[limit].number if len(rows) > limit else 0)

    def adapter(self, digest: str) -> bytes:
        """An adapter's file.

        Raises:
            MissingWeights: it is not in the store.
            BrokenWeights: what is there has another SHA-256.
        """
        return self._artifacts.get(check_digest("adapter", digest))

    def merge(self, references: Sequence[tuple[str, float]], how: Merge = "stack", *, rank: int | None = None, note: str = "") -> Version:
        """Merge versions of one base into a new one with a single adapter, and record the merge in its lineage.

        Args:
            references: versions (see `get`) and the factors of their updates.
            how: ``stack`` adds the updates, ``mean`` divides by their number.
            rank: the rank to compress to (best approximation); None: the exact sum.
            note: a short text.

        Raises:
            NotFound: there is no such version.
            InvalidInput: there is nothing to merge, the bases differ, or the adapters do not fit each other.
        """
        from services.registry.merging import merged

        if how not in MERGES:
            raise InvalidInput("how", f"{how!r} is no way to merge.", hint=f"Use one of {', '.join(MERGES)}.")
        versions = [self.get(reference) for reference, _ in references]
        bases = {version.base.id: version.base for version in versions}
        if len(bases) != 1 or not any(version.parts for version in versions):
            raise InvalidInput("versions", f"are of {len(bases)} base models; adapters of one are needed.")
        scales = [weight / (len(versions) if how == "mean" else 1) for _, weight in references]
        scaled = zip(versions, scales, strict=True)
        parts = tuple(WeightedAdapter(part.adapter, part.weight * scale) for version, scale in scaled for part in version.parts)
        check_parts(parts)
        result = merged([(self._artifacts.get(part.adapter), part.weight) for part in parts], rank)
        sources = [{"version": version.id, "weight": float(weight)} for version, (_, weight) in zip(versions, references, strict=True)]
        step = Node.about("merge", how=how, rank=rank, error=result.error, sources=sources, libraries=result.libraries)
        (base,) = bases.values()
        whole = (WeightedAdapter(result.sha256),)
        own = f"version:{version_id(base.id, whole)}"
        with self._database.reading() as session:
            before, _ = graph.reached(session, {f"version:{version.id}" for version in versions})
        if own in before:  # such as the sum of one version: the result exists, and a node cannot come of itself
            return self.get(own.removeprefix("version:"))
        edges = [Edge(own, "made_by", step.id), *(Edge(step.id, "of", f"version:{version.id}") for version in versions)]
        return self.register(base, whole, files={result.sha256: result.data}, lineage=Lineage((step,), tuple(edges)), note=note)

    # --- aliases ---

    def aliases(self) -> dict[str, str]:
        """The id of the version that every alias points at."""
        with self._database.reading() as session:
            return {row.name: row.version_id for row in session.scalars(select(tables.AliasRow).order_by(tables.AliasRow.name))}

    def set_alias(self, alias: str, reference: str, *, expected: str, reason: str = "") -> Move:
        """Compare and set: move an alias to a version if it still points at ``expected``; of concurrent calls one succeeds.

        If it points there already, nothing changes and its last move is returned.

        Args:
            alias: its name.
            reference: the version (see `get`).
            expected: the id it points at now; empty: the alias is new.
            reason: a short text for its history.

        Raises:
            Conflict: it points at another version.
            NotFound: there is no such version.
            InvalidInput: a field cannot be used.
        """
        check_alias(alias)
        check_text("reason", reason)
        if expected and not DIGEST.fullmatch(expected):
            raise InvalidInput("expected", f"{expected[:80]!r} is no id of a version.", hint="Give all 64 digits; empty for a new alias.")
        with self._database.writing() as writing:
            version = _resolve(writing.session, reference)
            if version == expected and (moves := aliases.moves_of(writing.session, alias)) and moves[-1].version_id == expected:
                return aliases.as_record(moves[-1])  # no move, so that a rollback does not find one
            return aliases.move(writing, alias, version, expected, reason)

    def rollback(self, alias: str, *, expected: str, reason: str = "") -> Move:
        """Move an alias back to the version before; repeated calls go further back.

        Raises:
            Conflict: it does not point at ``expected``.
            NotFound: there is no such alias.
            InvalidInput: it has no earlier version.
        """
        check_alias(alias)
        check_text("reason", reason)
        with self._database.writing() as writing:
            moves = aliases.moves_of(writing.session, alias)
            if not moves:
                raise NotFound(f"There is no alias {alias!r}.")
            target = aliases.rollback_target(moves)
            if target is None:
                raise InvalidInput("alias", f"{alias!r} has no earlier place to go back to.")
            return aliases.move(writing, alias, target.version_id, expected, reason, restores=target.revision)

    def history(self, alias: str) -> tuple[Move, ...]:
        """All moves of an alias, the first one first.

        Raises:
            NotFound: there is no such alias.
        """
        with self._database.reading() as session:
            moves = aliases.moves_of(session, alias)
        if not moves:
            raise NotFound(f"There is no alias {alias[:80]!r}.")
        return tuple(aliases.as_record(row) for row in moves)

    # --- lineage, events, garbage collection ---

    def lineage(self, reference: str, depth: int | None = None) -> Lineage:
        """The lineage of a version, at most ``depth`` steps: adapters, pairs, prompts, parents, run, seeds, libraries.

        Raises:
            NotFound: there is no such version.
        """
        with self._database.reading() as session:
            return graph.load(session, {f"version:{_resolve(session, reference)}"}, depth)

    def events(self, after: int = 0, limit: int = MAX_PAGE) -> tuple[RegistryEvent, ...]:
        """The events after number ``after``, in order and without gaps; no later event gets a number between them."""
        query = select(tables.EventRow).where(tables.EventRow.number > after).order_by(tables.EventRow.number).limit(limit)
        with self._database.reading() as session:
            rows = session.scalars(query).all()
            return tuple(RegistryEvent(row.number, row.kind, row.subject, row.content, row.happened) for row in rows)

    def latest(self) -> int:
        """The number of the last event; 0 without events."""
        with self._database.reading() as session:
            return session.scalars(select(tables.ClockRow.event)).one()

    def collect(self, *, older_than: float = 7 * DAY, dry_run: bool = True) -> Collection:
        """Find what may be deleted (see `garbage`), and delete it with ``dry_run=False``; ``older_than`` in seconds.

        Raises:
            InvalidInput: ``older_than`` is below 0.
        """
        if not older_than >= 0:
            raise InvalidInput("older_than", f"{older_than} is no age in seconds.")
        if dry_run:
            with self._database.reading() as session:
                return garbage(session, self._artifacts, time.time() - older_than)
        with self._database.writing() as writing:
            found = garbage(writing.session, self._artifacts, writing.now - older_than)
            for id in found.versions:
                writing.say("collected", id)
            remove(writing.session, self._artifacts, found)
            return found

    def _known(self, base: Base) -> Base:
        """The base with its stored name and modules."""
        with self._database.reading() as session:
            row = session.get(tables.BaseRow, base.id)
        if row is None or row.modules is None:
            return base
        if base.modules is not None and {name: list(shape) for name, shape in base.modules.items()} != row.modules:
            raise InvalidInput("base", "its modules differ from the registered ones.", hint="The same files have the same modules.")
        return Base(base.id, row.name, row.modules)


def _keep_base(writing: Writing, base: Base) -> None:
    modules = None if base.modules is None else {name: list(shape) for name, shape in base.modules.items()}
    row = writing.session.get(tables.BaseRow, base.id)
    if row is None:
        writing.session.add(tables.BaseRow(id=base.id, name=base.name, modules=modules, created=writing.now))
    elif row.modules is None:
        row.modules = modules
    elif modules is not None and modules != row.modules:
        raise Conflict(f"Other modules of {base.id} were registered in between.", hint="Register again.")
    writing.session.flush()


def _keep_adapter(writing: Writing, adapter: VerifiedAdapter) -> None:
    if writing.session.get(tables.AdapterRow, adapter.sha256) is not None:
        return
    low, high = adapter.ranks
    writing.session.add(
        tables.AdapterRow(
            id=adapter.sha256,
            size=adapter.size,
            modules=len(adapter.modules),
            parameters=adapter.parameters,
            rank_low=low,
            rank_high=high,
            dtypes=list(adapter.dtypes),
            created=writing.now,
        )
    )
    writing.session.flush()


def _keep_version(
    writing: Writing, id: str, base: Base, parts: tuple[WeightedAdapter, ...], metrics: dict[str, float], note: str
) -> None:
    if writing.session.get(tables.VersionRow, id) is not None:
        return
    number = writing.say("registered", id, base=base.id, note=note)
    row = tables.VersionRow(id=id, number=number, base_id=base.id, metrics=metrics, note=note, created=writing.now)
    writing.session.add(row)
    writing.session.flush()
    writing.session.add_all(
        tables.VersionAdapterRow(version_id=id, position=position, adapter_id=part.adapter, weight=float(part.weight))
        for position, part in enumerate(parts)
    )
    writing.session.flush()


def _own_lineage(id: str, base: Base, parts: tuple[WeightedAdapter, ...], lineage: Lineage) -> Lineage:
    """The given lineage, with the version's own node, its base and its adapters."""
    own = Node("version", id)
    base_node, adapters = Node("base", base.id), [Node("adapter", digest) for digest in dict.fromkeys(part.adapter for part in parts)]
    edges = [Edge(own.id, "based_on", base_node.id), *(Edge(own.id, "has", adapter.id) for adapter in adapters)]
    return Lineage((own, base_node, *adapters, *lineage.nodes), (*edges, *lineage.edges))


def _resolve(session: Session, reference: str) -> str:
    row = session.get(tables.AliasRow, reference) if len(reference) <= 64 and "\0" not in reference else None
    if row is not None:
        return row.version_id
    found: Sequence[str] = ()
    if PREFIX.fullmatch(reference):
        found = session.scalars(select(tables.VersionRow.id).where(tables.VersionRow.id.startswith(reference)).limit(2)).all()
    if len(found) > 1:
        raise InvalidInput("version", f"several ids begin with {reference}.", hint="Give more digits.")
    if not found:
        raise NotFound(f"There is no version or alias {reference[:80]!r}.", hint="See: sfumato models ls")
    return found[0]


def _version(session: Session, id: str) -> Version:
    row = session.get_one(tables.VersionRow, id)
    base = session.get_one(tables.BaseRow, row.base_id)
    places = select(tables.VersionAdapterRow).where(tables.VersionAdapterRow.version_id == id).order_by(tables.VersionAdapterRow.position)
    parts = tuple(WeightedAdapter(part.adapter_id, part.weight) for part in session.scalars(places))
    names = session.scalars(select(tables.AliasRow.name).where(tables.AliasRow.version_id == id).order_by(tables.AliasRow.name))
    return Version(id, row.number, Base(base.id, base.name, base.modules), parts, row.metrics, row.note, row.created, tuple(names))
