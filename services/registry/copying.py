"""Saves and restores a SQLite registry while it is in use: ``python -m services.registry.copying save > FILE``, ``load < FILE``.

For PostgreSQL use `pg_dump`. A saved file is a consistent snapshot; loading replaces the whole database atomically. Watchers are refused
afterwards until they start again at 0, because the events' numbers went back.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import make_url

from services.registry.database import Database
from sfumato.errors import InvalidInput, SfumatoError, Unavailable
from sfumato.runtime.settings import Settings


def save(url: str, target: BinaryIO) -> None:
    """Write a copy of the database.

    Raises:
        InvalidInput: the database is not SQLite.
        Unavailable: it cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        _copied(_file(url), copy)
        with copy.open("rb") as data:
            shutil.copyfileobj(data, target)


def load(url: str, source: BinaryIO) -> None:
    """Replace the database with a copy, and migrate it to the newest schema.

    Raises:
        InvalidInput: the database is not SQLite, or ``source`` is no SQLite database.
        Unavailable: it cannot be written, or the copy has a newer schema; nothing is changed.
    """
    target = _file(url)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        with copy.open("wb") as data:
            shutil.copyfileobj(source, data)
        with copy.open("rb") as data:
            head = data.read(16)
        if head != b"SQLite format 3\0":
            raise InvalidInput("copy", "this is no SQLite database.", hint="Give what `save` wrote.")
        Database(f"sqlite:///{copy}").close()
        _copied(copy, target)


def _copied(source: Path, target: Path) -> None:
    try:
        with closing(sqlite3.connect(source, timeout=60)) as old, closing(sqlite3.connect(target, timeout=60)) as new:
            old.backup(new)
    except sqlite3.Error as error:
        raise Unavailable(f"The registry's database cannot be copied: {error}.") from error


def _file(url: str) -> Path:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise InvalidInput("registry_url", "this database is no file.", hint="PostgreSQL: pg_dump and pg_restore.")
    return Path(parsed.database)


def main(words: list[str]) -> int:
    """The command line; exit status 0, 1 after an error, or 2 after unusable input."""
    try:
        match words:
            case ["save"]:
                save(Settings().registry_database, sys.stdout.buffer)
            case ["load"]:
                load(Settings().registry_database, sys.stdin.buffer)
            case _:
                raise InvalidInput("command", "say save or load.")
    except SfumatoError as error:
        print(f"sfumato: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
