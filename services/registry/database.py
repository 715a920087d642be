"""The database connection for SQLite and PostgreSQL: transactions, and migration of the schema."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from services.registry.tables import ClockRow, EventRow
from sfumato.errors import Blocked, InvalidInput, Unavailable

# The newest migration. A database at this revision is opened with one query and without Alembic.
HEAD = "0001"
DIALECTS = ("sqlite", "postgresql")
# Key of the advisory lock for migrations in PostgreSQL; an arbitrary number.
MIGRATION_LOCK = 7_316_024
# Seconds that a writer waits for another process's transaction; transactions are short, but a disk may be slow.
PATIENCE = 120


class Database:
    """A database with the newest schema. Every read sees one snapshot; writes are serialized."""

    def __init__(self, url: str) -> None:
        """Open the database, and create or migrate it when necessary; any number of processes may do so at once.

        Args:
            url: ``sqlite:///path/registry.sqlite`` or ``postgresql://user@host/name``.

        Raises:
            InvalidInput: the URL names no supported database.
            Unavailable: the database does not answer, or has a newer schema.
        """
        self.engine = _engine(url)
        self._closed = False
        # SQLite's lock is not fair: waiting writers poll it. So only one thread of a process waits for it.
        self._turn = threading.Lock() if self.engine.dialect.name == "sqlite" else nullcontext()
        try:
            self._migrate()
        except DatabaseError as error:
            self.close()
            if not _is_the_databases(error):
                raise
            raise unavailable(error) from error
        except Unavailable:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for reading; all its queries see one snapshot.

        Raises:
            Unavailable: the database does not answer.
        """
        options: dict[str, Any] = {} if self.engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        with self._connected(**options) as connection, Session(connection) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """A session for writing, committed when the context ends; no other transaction writes in between.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._turn, self._connected(writes=True) as connection, Session(connection) as session, session.begin():
            yield Writing(session)

    def close(self) -> None:
        """Close all connections; connections in use by other threads are closed when they are returned."""
        self._closed = True
        self.engine.dispose()

    @contextmanager
    def _connected(self, **options: Any) -> Iterator[Connection]:
        pool = self.engine.pool
        try:
            with self.engine.connect().execution_options(**options) as connection:
                yield connection
        except DatabaseError as error:
            if not _is_the_databases(error):
                raise
            raise unavailable(error) from error
        finally:
            if self._closed:
                pool.dispose()  # the connection was returned after `close` had emptied the pool

    def _migrate(self) -> None:
        with self.engine.connect() as connection:
            if _revision(connection) == HEAD:
                return
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            upgrade(connection)


class Writing:
    """A write transaction. It locks the clock row, so that its events get the next numbers and the next writer waits."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._clock = session.scalars(select(ClockRow).with_for_update()).one()
        self.now = round(time.time(), 3)

    @property
    def number(self) -> int:
        """The number of the last event."""
        return self._clock.event

    def say(self, kind: str, subject: str, **content: Any) -> int:
        """Add an event; returns its number."""
        self._clock.event += 1
        self.session.add(EventRow(number=self.number, kind=kind, subject=subject, content=content, happened=self.now))
        return self.number


def upgrade(connection: Connection) -> None:
    """Migrate the schema to the newest revision, within the connection's transaction.

    Raises:
        Unavailable: the database has a newer schema.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "services.registry:migrations")
    config.attributes["connection"] = connection
    revision = _revision(connection)
    try:
        if revision is not None:
            ScriptDirectory.from_config(config).get_revision(revision)
        command.upgrade(config, "head")
    except CommandError as error:
        raise Unavailable(
            f"The registry's database is at revision {revision}, which this version does not know.",
            hint="It was made by a newer sfumato: update this one.",
        ) from error


_LASTING = {
    "42501": "Give the user in SFUMATO_REGISTRY_URL the right to create and change the tables of this database.",
    "25006": "It is read-only: name the primary server in SFUMATO_REGISTRY_URL.",
    "53100": "Its disk is full: make room.",
    "SQLITE_READONLY": "Give the user of this process the right to write the file, and in its folder.",
    "SQLITE_FULL": "Its disk is full: make room.",
}
"""What to do, by the first letters of PostgreSQL's codes (SQLSTATE) and of SQLite's names of errors that last."""


def unavailable(error: DatabaseError) -> Unavailable:
    """The error for a failing database, without the statement and without a password; `Blocked` if it refuses for good."""
    words = str(error.orig).strip().splitlines()[:1] or ["no words"]
    hint = _what_to_change(error)
    if hint:
        return Blocked(f"The registry's database refuses: {words[0]}.", hint=hint)
    return Unavailable(f"The registry's database does not answer: {words[0]}.", hint="Is it running, and SFUMATO_REGISTRY_URL right?")


def _is_the_databases(error: DatabaseError) -> bool:
    """Whether an error is the database's, and not a defect of a statement."""
    return isinstance(error, OperationalError) or bool(_what_to_change(error))


def _what_to_change(error: DatabaseError) -> str:
    """What to do about an error that lasts; empty for others."""
    number = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
    return next((hint for start, hint in _LASTING.items() if number.startswith(start)), "")


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidInput("registry_url", "it is no database URL.", hint="Such as sqlite:///runs/registry.sqlite.") from error
    if parsed.get_backend_name() not in DIALECTS:
        raise InvalidInput("registry_url", f"{parsed.get_backend_name()} is not supported.", hint="Use SQLite or PostgreSQL.")
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    try:
        if parsed.get_backend_name() == "postgresql":
            return create_engine(parsed, pool_pre_ping=True)
        if not parsed.database or parsed.database == ":memory:":
            raise InvalidInput("registry_url", "SQLite needs a file.", hint="Such as sqlite:///runs/registry.sqlite.")
        Path(parsed.database).absolute().parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": PATIENCE})
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        hint = "Install sfumato[registry]."
        raise InvalidInput("registry_url", f"its driver is not installed ({error}).", hint=hint) from error
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: Any, _: object) -> None:
    """SQLite: write-ahead log, foreign keys enforced, commits synced to disk; transactions are begun explicitly."""
    connection.isolation_level = None
    _write_ahead(connection)
    for pragma in ("foreign_keys=ON", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """Write-ahead logging: readers run beside a writer. When several processes switch a new file to it at the same time, SQLite refuses
    all but one at once, without the connection's timeout.
    """
    busy = retry_if_exception_type(sqlite3.OperationalError)
    retrying = Retrying(retry=busy, stop=stop_after_delay(PATIENCE), wait=wait_fixed(0.01), reraise=True)
    retrying(connection.execute, "PRAGMA journal_mode=WAL")


def _on_begin(connection: Connection) -> None:
    """SQLite: a writer takes its lock at the start; a read transaction that is upgraded later would fail instead of waiting."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))
