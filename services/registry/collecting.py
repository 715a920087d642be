"""Garbage collection of old versions that no alias has ever pointed at and that no kept version came of."""

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
    """What may be deleted. Kept are all versions that an alias points at or has pointed at, all versions created at ``before`` (seconds
    since 1970) or later, and everything these came of: parents, adapters, pairs, prompts. Files that a task's manifest names belong to
    a run and are kept.
    """
    rows, moves, stored = tables.VersionRow, tables.AliasMoveRow, tables.AdapterRow
    rooted = or_(
        rows.created >= before,
        rows.id.in_(select(tables.AliasRow.version_id)),
        rows.id.in_(select(moves.version_id)),
        rows.id.in_(select(moves.previous_id).where(moves.previous_id.is_not(None))),
    )
    nodes, _ = reached(session, {f"version:{id}" for id in session.scalars(select(rows.id).where(rooted))})
    versions = [id for id in session.scalars(select(rows.id).order_by(rows.number)) if f"version:{id}" not in nodes]
    gone = set(versions)
    parts = session.execute(select(tables.VersionAdapterRow.version_id, tables.VersionAdapterRow.adapter_id))
    used = {adapter for version, adapter in parts if version not in gone}
    sizes = session.execute(select(stored.id, stored.size, stored.created).order_by(stored.id)).all()
    adapters = {id: size for id, size, created in sizes if id not in used and f"adapter:{id}" not in nodes and created < before}
    files = set(adapters) - _of_runs(artifacts) if adapters else set()
    lost = [id for id in session.scalars(select(tables.NodeRow.id).order_by(tables.NodeRow.id)) if id not in nodes]
    return Collection(tuple(versions), tuple(adapters), tuple(lost), sum(adapters[id] for id in files))


def remove(session: Session, artifacts: ArtifactStore, found: Collection) -> None:
    """Delete it: rows first, then files. When it is interrupted, the transaction is rolled back, and the next collection completes it."""
    for part in chunks(found.versions):
        session.execute(delete(tables.VersionAdapterRow).where(tables.VersionAdapterRow.version_id.in_(part)))
        session.execute(delete(tables.VersionRow).where(tables.VersionRow.id.in_(part)))
    for part in chunks(found.adapters):
        session.execute(delete(tables.AdapterRow).where(tables.AdapterRow.id.in_(part)))
    for part in chunks(found.nodes):
        session.execute(delete(tables.EdgeRow).where(tables.EdgeRow.node_id.in_(part)))
    for part in chunks(found.nodes):
        session.execute(delete(tables.NodeRow).where(tables.NodeRow.id.in_(part)))
    session.flush()
    kept = _of_runs(artifacts) if found.adapters else set()
    for id in found.adapters:
        if id not in kept:
            artifacts.delete(id)


def _of_runs(artifacts: ArtifactStore) -> set[str]:
    """Every file that a manifest in the store names: a resumed run needs it."""
    return {digest for manifest in _manifests(artifacts) for digest in manifest["files"].values()}


def _manifests(artifacts: ArtifactStore) -> Iterator[dict]:
    for key in artifacts.keys(MANIFESTS):
        data = artifacts.read_key(key)
        if data is not None:
            yield json.loads(data)
