"""The generator's program: ``python -m services.generator.app``; settings ``SFUMATO_GENERATOR_*``, ``SFUMATO_GRPC_*``, ``SFUMATO_*``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.generator.engine import GeneratorSettings
from services.generator.served import ServedGenerator, serve
from services.generator.servicer import GeneratorServicer
from services.generator.tasks import HANDLERS
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.hub import located
from sfumato.runtime.models.references import VISTA, model_folder
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service, run
from sfumato.runtime.settings import FiledSettings, ServingSettings, Settings
from sfumato.v1.generator_pb2_grpc import add_GeneratorServiceServicer_to_server

ADDRESS = "127.0.0.1:7101"


class PaintingSettings(FiledSettings):
    """What this service paints with."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_GENERATOR_", frozen=True)

    # The folder of a diffusers pipeline, or its name on the hub; Vista's where empty.
    model: str = ""
    # Numbers of its weights: float32 or bfloat16.
    precision: Literal["float32", "bfloat16"] = "float32"
    # Rows (pictures, unconditional and region branches) of one forward at most.
    max_batch: int = Field(default=16, ge=1)


def services(serving: ServingSettings) -> Sequence[Service]:
    """The generator's service on its engine."""
    settings, painting = Settings(), PaintingSettings()

    def load() -> ServedGenerator:
        folder = located(painting.model) if painting.model else model_folder(VISTA, "generator", settings)
        return serve(folder, painting.precision, GeneratorSettings(max_batch=painting.max_batch))

    queue = EngineQueue(load, waiting=serving.waiting)
    servicer = GeneratorServicer(queue, ArtifactStore(settings.artifacts_url))
    return [Service("sfumato.v1.GeneratorService", partial(add_GeneratorServiceServicer_to_server, servicer), queue, HANDLERS)]


if __name__ == "__main__":
    run(services, ADDRESS)
