"""The registry's service for the catalog's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.registry.app import services
from sfumato.registry.client import RegistryClient
from sfumato.runtime.artifacts import ArtifactStore
from tests.unit.services.inference.models.vista_registry import House
from tests.unit.services.serving import served_at


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """What the registry's program is told; its store."""
    store = ArtifactStore(str(tmp_path / "artifacts"))
    monkeypatch.setenv("SFUMATO_REGISTRY_URL", f"sqlite:///{tmp_path / 'registry.sqlite'}")
    monkeypatch.setenv("SFUMATO_ARTIFACTS", store.url)
    monkeypatch.setenv("SFUMATO_REGISTRY_WATCH_INTERVAL", "0.05")
    return store


@pytest.fixture
def house(place: ArtifactStore) -> Iterator[House]:
    """A registry that is up, and Vista."""
    with served_at(services, place) as address:
        yield House(address)


@pytest.fixture
def registry(house: House) -> Iterator[RegistryClient]:
    """A client of it beside the catalog's."""
    with RegistryClient(house.address) as client:
        yield client
