"""Following a registry that goes away and comes back: no move is missed."""

from __future__ import annotations

import time
from collections.abc import Mapping

from services.inference.models.aliases import AliasWatcher
from services.registry.app import services
from sfumato.errors import Unavailable
from sfumato.registry.client import RegistryClient
from sfumato.runtime.artifacts import ArtifactStore
from tests.unit.services.registry.samples import BASE
from tests.unit.services.registry.servers import free_port
from tests.unit.services.serving import served_at

PATIENCE = 60.0


def _becomes(told: list[Mapping[str, str]], wanted: dict[str, str]) -> None:
    end = time.monotonic() + PATIENCE
    while not told or told[-1] != wanted:
        assert time.monotonic() < end, told
        time.sleep(0.01)


def _answers(registry: RegistryClient) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            registry.aliases()
            return
        except Unavailable:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_moves_made_before_while_and_after_the_registry_is_away_are_told(place: ArtifactStore) -> None:
    address, told = f"127.0.0.1:{free_port()}", list[Mapping[str, str]]()
    following = AliasWatcher(RegistryClient(address), told.append, pause=0.05)
    following.start()  # before there is anybody
    with served_at(services, place, address), RegistryClient(address) as registry:
        _becomes(told, {})  # channels to one address share a connection, and their patience with it
        version = registry.register(BASE).id
        registry.set_alias("one", version, expected="")
        _becomes(told, {"one": version})
    with served_at(services, place, address), RegistryClient(address) as registry:
        _answers(registry)
        registry.set_alias("two", version, expected="")
        _becomes(told, {"one": version, "two": version})
        assert not following.trouble
        registry.set_alias("three", version, expected="")
        _becomes(told, {"one": version, "two": version, "three": version})
        following.stop()
