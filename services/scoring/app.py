"""The scoring service's program: ``python -m services.scoring.app``; settings ``SFUMATO_SCORING_*``, ``SFUMATO_GRPC_*``, ``SFUMATO_*``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic_settings import SettingsConfigDict

from services.scoring.engine import ScoringEngine
from services.scoring.loading import VISTA
from services.scoring.servicer import ScoringServicer
from services.scoring.tasks import HANDLERS, engine_of
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.references import vista_root
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service, run
from sfumato.runtime.settings import FiledSettings, ServingSettings, Settings
from sfumato.v1.scoring_pb2_grpc import add_ScoringServiceServicer_to_server

ADDRESS = "127.0.0.1:7103"


class ScoringSettings(FiledSettings):
    """What this service scores by."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_SCORING_", frozen=True)

    # Metrics to load, as a JSON list.
    metrics: tuple[str, ...] = VISTA
    # A folder or hub model for each metric that is not to use Vista's weights, as a JSON object.
    models: dict[str, str] = {}


def services(serving: ServingSettings) -> Sequence[Service]:
    """The scoring service on its engine."""
    settings, scoring = Settings(), ScoringSettings()

    def load() -> ScoringEngine:
        return engine_of(vista_root(settings), scoring.models, scoring.metrics)

    lane = EngineQueue(load, waiting=serving.waiting)
    servicer = ScoringServicer(lane, ArtifactStore(settings.artifacts_url))
    return [Service("sfumato.v1.ScoringService", partial(add_ScoringServiceServicer_to_server, servicer), lane, HANDLERS)]


if __name__ == "__main__":
    run(services, ADDRESS)
