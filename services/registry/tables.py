"""The registry's tables. Rows are only added, except that aliases move and garbage collection deletes rows.

Digests are SHA-256 in lower-case hex. Times are UTC seconds since 1970: the same number in every database.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Naming convention of constraints, so that a migration can name them in every database.
NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
DIGEST = String(64)
NODE = String(100)
ALIAS = String(64)


class Table(DeclarativeBase):
    """Base class of all tables."""

    metadata = MetaData(naming_convention=NAMES)


class ClockRow(Table):
    """One row: the number of the last event. Every write locks it first, so that events become visible in order and without gaps."""

    __tablename__ = "clock"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    event: Mapped[int] = mapped_column(BigInteger)


class BaseRow(Table):
    """A base model: ``id`` is the hash of its files, ``modules`` its linear layers, or NULL when they are unknown.

    ``modules``: ``{"transformer.<module>": [out, in]}``.
    """

    __tablename__ = "bases"

    id: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    modules: Mapped[dict[str, list[int]] | None] = mapped_column(JSON(none_as_null=True))
    created: Mapped[float] = mapped_column(Float(53))


class AdapterRow(Table):
    """A verified LoRA file; ``id`` is the SHA-256 of its bytes, which are in the artifact store. ``size`` in bytes."""

    __tablename__ = "adapters"

    id: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    modules: Mapped[int] = mapped_column(Integer)
    parameters: Mapped[int] = mapped_column(BigInteger)
    rank_low: Mapped[int] = mapped_column(Integer)
    rank_high: Mapped[int] = mapped_column(Integer)
    dtypes: Mapped[list[str]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Float(53))


class VersionRow(Table):
    """A model: base + adapters with weights. ``id`` is the hash of these; ``metrics`` and ``note`` are those of the first registration.

    ``number`` is the number of its event; versions are listed in this order.
    """

    __tablename__ = "versions"

    id: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, unique=True)
    base_id: Mapped[str] = mapped_column(ForeignKey("bases.id"), index=True)
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    note: Mapped[str] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Float(53))


class VersionAdapterRow(Table):
    """One adapter of a version, with its position and weight."""

    __tablename__ = "version_adapters"

    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), index=True)
    weight: Mapped[float] = mapped_column(Float(53))


class AliasRow(Table):
    """A name that points at a version; ``revision`` counts its moves, from 1."""

    __tablename__ = "aliases"

    name: Mapped[str] = mapped_column(ALIAS, primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), index=True)
    revision: Mapped[int] = mapped_column(Integer)


class AliasMoveRow(Table):
    """A move of an alias: ``previous_id`` is NULL for the first one; ``restores`` is the revision that a rollback went back to."""

    __tablename__ = "alias_moves"
    __table_args__ = (UniqueConstraint("alias", "revision"),)

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    alias: Mapped[str] = mapped_column(ALIAS)
    revision: Mapped[int] = mapped_column(Integer)
    previous_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"), index=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), index=True)
    restores: Mapped[int | None] = mapped_column(Integer)
    reason: Mapped[str] = mapped_column(Text)
    moved: Mapped[float] = mapped_column(Float(53))


class NodeRow(Table):
    """A node of the lineage. ``id`` is ``<kind>:<digest>``: the digest of its bytes if it has any, else of its content."""

    __tablename__ = "nodes"

    id: Mapped[str] = mapped_column(NODE, primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), index=True)
    content: Mapped[dict[str, Any]] = mapped_column(JSON)


class EdgeRow(Table):
    """``node`` came of ``source``; ``relation`` says how."""

    __tablename__ = "edges"
    __table_args__ = (Index("ix_edges_source", "source_id"),)

    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    relation: Mapped[str] = mapped_column(String(32), primary_key=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)


class EventRow(Table):
    """An event; numbers have no gaps and follow the order in which events become visible."""

    __tablename__ = "events"

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(100))
    content: Mapped[dict[str, Any]] = mapped_column(JSON)
    happened: Mapped[float] = mapped_column(Float(53))
