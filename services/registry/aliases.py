"""Aliases: their moves, compare-and-set, and where a rollback goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from services.registry import tables
from services.registry.database import Writing
from sfumato.errors import Conflict
from sfumato.registry.records import Move


def moves_of(session: Session, alias: str) -> Sequence[tables.AliasMoveRow]:
    """All moves of an alias, the first one first."""
    moves = tables.AliasMoveRow
    return session.scalars(select(moves).where(moves.alias == alias).order_by(moves.revision)).all()


def move(writing: Writing, alias: str, version: str, expected: str, reason: str, restores: int | None = None) -> Move:
    """Compare and set: move an alias to a version if it points at ``expected`` (empty: it is new).

    The condition is in the statement itself, so that it holds without the clock's lock, too.

    Raises:
        Conflict: it points at another version.
    """
    session = writing.session
    row = session.get(tables.AliasRow, alias)
    current = row.version_id if row else ""
    if current != expected:
        where = f"points at {current[:12]}" if current else "does not exist"
        raise Conflict(f"The alias {alias!r} {where}, not as expected.", hint="Read the alias again, then decide.")
    if row is None:
        revision = 1
        session.add(tables.AliasRow(name=alias, version_id=version, revision=revision))
    else:
        revision = row.revision + 1
        same = (tables.AliasRow.name == alias) & (tables.AliasRow.version_id == expected) & (tables.AliasRow.revision == row.revision)
        changed: Any = session.execute(update(tables.AliasRow).where(same).values(version_id=version, revision=revision))
        if changed.rowcount != 1:
            raise Conflict(f"The alias {alias!r} moved.", hint="Read the alias again, then decide.")
    number = writing.say("alias", alias, version=version, previous=current, revision=revision, reason=reason)
    moved = tables.AliasMoveRow(
        number=number,
        alias=alias,
        revision=revision,
        previous_id=current or None,
        version_id=version,
        restores=restores,
        reason=reason,
        moved=writing.now,
    )
    session.add(moved)
    session.flush()
    return as_record(moved)


def rollback_target(moves: Sequence[tables.AliasMoveRow]) -> tables.AliasMoveRow | None:
    """The move whose version the next rollback restores; None when there is no earlier version.

    A rollback counts as the revision that it restored: the next rollback goes to the revision before that one.
    """
    place: dict[int, int] = {}
    before: dict[int, int] = {}
    for move in moves:
        if move.restores is None:
            before[move.revision] = place.get(move.revision - 1, 0)
        place[move.revision] = move.restores or move.revision
    target = before[place[moves[-1].revision]]
    return moves[target - 1] if target else None


def as_record(row: tables.AliasMoveRow) -> Move:
    """The row as the registry's callers get it."""
    return Move(row.alias, row.revision, row.previous_id or "", row.version_id, row.reason, row.moved)
