"""Garbage collection: what no alias has ever pointed at, what nothing that is kept came of, and what is not new."""

from __future__ import annotations

import json
from collections.abc import Iterator

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from services.registry import tables
from services.registry.graph import chunks, reached
from sfumato.registry.records import Collection
from sfumato.runtime.artifacts import ArtifactStore

MANIFESTS = "manifests/"


def garbage(session: Session, artifacts: ArtifactStore, before: float) -> Collection:
    """What may go. Kept is every version that an alias points at or ever pointed at, every one that came at ``before`` (seconds
    since 1970) or later, and all that these came of: parents, adapters, pairs, prompts. Files that a task's manifest names belong
    to a run and stay.
    """
    moves = tables.AliasMove
    rooted = or_(
        tables.Version.created >= before,
        tables.Version.id.in_(select(tables.Alias.version_id)),
        tables.Version.id.in_(select(moves.version_id)),
        tables.Version.id.in_(select(moves.previous_id).where(moves.previous_id.is_not(None))),
    )
    nodes, _ = reached(session, {f"version:{id}" for id in session.scalars(select(tables.Version.id).where(rooted))})
    versions = [id for id in session.scalars(select(tables.Version.id).order_by(tables.Version.number)) if f"version:{id}" not in nodes]
    gone = set(versions)
    parts = session.execute(select(tables.VersionAdapter.version_id, tables.VersionAdapter.adapter_id))
    used = {adapter for version, adapter in parts if version not in gone}
    rows = session.execute(select(tables.Adapter.id, tables.Adapter.size, tables.Adapter.created).order_by(tables.Adapter.id)).all()
    adapters = {id: size for id, size, created in rows if id not in used and f"adapter:{id}" not in nodes and created < before}
    files = set(adapters) - _of_runs(artifacts) if adapters else set()
    lost = [id for id in session.scalars(select(tables.Node.id).order_by(tables.Node.id)) if id not in nodes]
    return Collection(tuple(versions), tuple(adapters), tuple(lost), sum(adapters[id] for id in files))


def remove(session: Session, artifacts: ArtifactStore, found: Collection) -> None:
    """Take it away: rows first, then files; if it ends between them, nothing is lost but the rows come back and the next one ends it."""
    for part in chunks(found.versions):
        session.execute(delete(tables.VersionAdapter).where(tables.VersionAdapter.version_id.in_(part)))
        session.execute(delete(tables.Version).where(tables.Version.id.in_(part)))
    for part in chunks(found.adapters):
        session.execute(delete(tables.Adapter).where(tables.Adapter.id.in_(part)))
    for part in chunks(found.nodes):
        session.execute(delete(tables.Edge).where(tables.Edge.node_id.in_(part)))
    for part in chunks(found.nodes):
        session.execute(delete(tables.Node).where(tables.Node.id.in_(part)))
    session.flush()
    kept = _of_runs(artifacts) if found.adapters else set()
    for id in found.adapters:
        if id not in kept:
            artifacts.delete(id)


def _of_runs(artifacts: ArtifactStore) -> set[str]:
    """Every file that a manifest in the store names: a run that goes on will look for it."""
    return {digest for manifest in _manifests(artifacts) for digest in manifest["files"].values()}


def _manifests(artifacts: ArtifactStore) -> Iterator[dict]:
    for key in artifacts.keys(MANIFESTS):
        data = artifacts.read_key(key)
        if data is not None:
            yield json.loads(data)
