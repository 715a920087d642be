"""The schema: made by migrations, the same as the tables, on both databases."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DatabaseError

from services.registry.database import HEAD, Database, _engine, unavailable
from services.registry.tables import Table
from sfumato.errors import Blocked, InvalidInput, Unavailable


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    database = Database(url)
    with closing(database):
        yield database.engine


def test_the_migrations_make_the_tables(database_url: str) -> None:
    with opened(database_url) as engine, engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_the_newest_migration_is_the_one_that_is_looked_for() -> None:
    config = Config()
    config.set_main_option("script_location", "services.registry:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_the_migrations_lie_in_the_package_and_need_no_file_of_the_users(tmp_path: Path, database_url: str) -> None:
    assert files("services.registry.migrations").joinpath("env.py").is_file()
    root = Path(__file__).parents[4]
    script = f"import sys; sys.path.insert(0, {str(root)!r}); from services.registry.database import Database; Database({database_url!r})"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    with opened(database_url) as engine, engine.connect() as connection:
        assert connection.scalar(text("SELECT event FROM clock")) == 0


def test_many_who_open_a_new_database_at_once_make_it_once(database_url: str) -> None:
    script = f"from services.registry.database import Database; Database({database_url!r})"
    several = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in several] == [("", 0)] * 4


def test_many_who_turn_a_new_file_to_writing_ahead_at_once_all_open_it(tmp_path: Path) -> None:
    """SQLite refuses the second of them at once, without the patience that it is told."""
    for number in range(40):
        url, together, failures = f"sqlite:///{tmp_path}/{number}.sqlite", threading.Barrier(6), list[BaseException]()

        def connect(url: str = url, together: threading.Barrier = together, failures: list[BaseException] = failures) -> None:
            engine = _engine(url)
            together.wait()
            try:
                engine.connect().close()
            except BaseException as error:
                failures.append(error)
            engine.dispose()

        threads = [threading.Thread(target=connect) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    with opened(database_url) as engine, engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Unavailable, match="update this one"):
        Database(database_url)


def test_migrations_are_one_line_that_goes_forwards_only(database_url: str) -> None:
    """From wherever on it a database is, opening it ends at the newest, with the tables as they are declared."""
    config = Config()
    config.set_main_option("script_location", "services.registry:migrations")
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert [script.down_revision for script in scripts] == [*(script.revision for script in scripts[1:]), None]
    assert not any(hasattr(script.module, "downgrade") for script in scripts)
    for script in reversed(scripts):
        engine = _engine(database_url)
        with closing_all(engine), engine.connect().execution_options(writes=True) as connection, connection.begin():
            Table.metadata.drop_all(connection)
            connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
            config.attributes["connection"] = connection
            command.upgrade(config, script.revision)
        with opened(database_url) as engine, engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
            assert connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD


@contextmanager
def closing_all(engine: Engine) -> Iterator[None]:
    try:
        yield
    finally:
        engine.dispose()


def test_sqlite_holds_to_foreign_keys_and_writes_ahead(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/deep/down/r.sqlite") as engine, engine.connect() as connection:
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/x", "sqlite://", "sqlite:///:memory:"])
def test_what_is_no_database_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="registry_url"):
        Database(url)


def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    with pytest.raises(Unavailable) as refused:
        Database("postgresql://someone:secret@127.0.0.1:1/registry")
    assert "secret" not in str(refused.value)


def test_a_database_that_refuses_for_good_says_what_to_change(postgres_url: str, tmp_path: Path) -> None:
    admin = create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    with admin.begin() as connection:
        connection.execute(text("CREATE ROLE guest LOGIN"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
    admin.dispose()
    with pytest.raises(Blocked, match="refuses: permission denied.*Give the user in SFUMATO_REGISTRY_URL the right"):
        Database(postgres_url.replace("sfumato@", "guest@"))
    file = tmp_path / "registry.sqlite"
    with opened(f"sqlite:///{file}") as engine, pytest.raises(DatabaseError) as refused, engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
        connection.exec_driver_sql("DELETE FROM clock")
    assert isinstance(unavailable(refused.value), Blocked)
