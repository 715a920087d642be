"""Registries on both databases."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text

from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.runtime.artifacts import ArtifactStore
from tests.unit.services.registry.servers import postgres


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server, shared by all tests that ask for one."""
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.sqlite'}"
    url, name = request.getfixturevalue("postgres_url"), f"test_{uuid4().hex}"
    admin = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with admin.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))  # as good as a database of its own, and quicker
    admin.dispose()
    return f"{url}&options=-csearch_path%3D{name}"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite registry, to be copied by tests that need many."""
    path = tmp_path_factory.mktemp("template") / "registry.sqlite"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An artifact store in a folder."""
    return ArtifactStore(str(tmp_path / "artifacts"))


@pytest.fixture
def registry(database_url: str, store: ArtifactStore) -> Iterator[Registry]:
    """An empty registry, on each database."""
    with closing(Registry(Database(database_url), store)) as opened:
        yield opened
