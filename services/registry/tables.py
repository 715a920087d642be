"""The registry's tables. Rows are only ever added, but for an alias's place and what garbage collection takes away.

Digests are SHA-256 in lower-case hex. Times are UTC seconds since 1970: the same number in every database.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Constraints have names of their own making, so that a migration can name them in every database.
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
    """Base of all of them."""

    metadata = MetaData(naming_convention=NAMES)


class ClockRow(Table):
    """One row: the number of the last event. Every write locks it first, so events become visible in their order, without gaps."""

    __tablename__ = "clock"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    event: Mapped[int] = mapped_column(BigInteger)


class BaseRow(Table):
    """A base model: ``id`` is the hash of its files, ``modules`` the linears an adapter may sit on, where they are known.

    ``modules``: ``{"transformer.<module>": [out, in]}``.
    """

    __tablename__ = "bases"

    id: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    modules: Mapped[dict[str, list[int]] | None] = mapped_column(JSON(none_as_null=True))
    created: Mapped[float] = mapped_column(Float(53))


class AdapterRow(Table):
    """A verified LoRA file; ``id`` is the SHA-256 of its bytes, which lie in the artifact store. ``size`` in bytes."""

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
    """A model: base + adapters with weights. ``id`` is the hash of just that; ``metrics`` and ``note`` are what was first said of it.

    ``number`` is the event with which it came, which is the order of the list.
    """

    __tablename__ = "versions"

    id: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, unique=True)
    base_id: Mapped[str] = mapped_column(ForeignKey("bases.id"), index=True)
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    note: Mapped[str] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Float(53))


class VersionAdapterRow(Table):
    """One adapter of a version, in its place, with its weight."""

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
    """Where an alias pointed when: ``previous_id`` is empty for its first place; ``restores`` is the revision a rollback went back to."""

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
    """A thing of the lineage. ``id`` is ``<kind>:<digest>``: of its bytes where it has any, else of its content."""

    __tablename__ = "nodes"

    id: Mapped[str] = mapped_column(NODE, primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), index=True)
    content: Mapped[dict[str, Any]] = mapped_column(JSON)


class EdgeRow(Table):
    """``node`` came of ``source``, in the way that ``relation`` says."""

    __tablename__ = "edges"
    __table_args__ = (Index("ix_edges_source", "source_id"),)

    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    relation: Mapped[str] = mapped_column(String(32), primary_key=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)


class EventRow(Table):
    """What happened, numbered without gaps in the order in which it can be seen."""

    __tablename__ = "events"

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(100))
    content: Mapped[dict[str, Any]] = mapped_column(JSON)
    happened: Mapped[float] = mapped_column(Float(53))
