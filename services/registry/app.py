"""The registry's program: ``python -m services.registry.app``; settings ``SFUMATO_REGISTRY_*``, ``SFUMATO_GRPC_*``, ``SFUMATO_*``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.registry.database import Database
from services.registry.engine import Registry
from services.registry.servicer import RegistryServicer
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service, run
from sfumato.runtime.settings import FiledSettings, ServingSettings, Settings
from sfumato.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server

ADDRESS = "127.0.0.1:7105"


class RegistrySettings(FiledSettings):
    """Settings of the service; the database is in the machine's settings, because the command line opens it too."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_REGISTRY_", frozen=True)

    # Seconds between two queries for new events of other replicas, while there are watchers.
    watch_interval: float = Field(default=0.5, ge=0.01, le=60)


def services(serving: ServingSettings) -> Sequence[Service]:
    """The registry's service on its database."""
    settings, registry = Settings(), RegistrySettings()

    def load() -> Registry:
        return Registry(Database(settings.registry_database), ArtifactStore(settings.artifacts_url))

    lane = EngineQueue(load, waiting=serving.waiting, unload=Registry.close)
    servicer = RegistryServicer(lane, registry.watch_interval)
    return [Service("sfumato.v1.RegistryService", partial(add_RegistryServiceServicer_to_server, servicer), lane)]


if __name__ == "__main__":
    run(services, ADDRESS)
