"""The trainer's program: ``python -m services.trainer.app``; settings ``SFUMATO_TRAINER_*``, ``SFUMATO_GRPC_*``, ``SFUMATO_*``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic_settings import SettingsConfigDict

from services.trainer.objectives.joint import JOINT
from services.trainer.served import ServedTrainer, serve
from services.trainer.servicer import TrainerServicer
from services.trainer.tasks import HANDLERS
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.hub import located
from sfumato.runtime.models.references import VISTA, model_folder
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service, run
from sfumato.runtime.settings import FiledSettings, ServingSettings, Settings
from sfumato.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server

ADDRESS = "127.0.0.1:7104"


class BaseModelSettings(FiledSettings):
    """What this service trains, and for which model."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_TRAINER_", frozen=True)

    # The folder of a diffusers pipeline, or its name on the hub; Vista's where empty.
    model: str = ""
    # Numbers of its weights: float32 or bfloat16.
    precision: Literal["float32", "bfloat16"] = "float32"
    # Whether it takes joint trainings as well; not where groups of processes do (`services.trainer.distributed`).
    joint: bool = True


def services(serving: ServingSettings) -> Sequence[Service]:
    """The trainer's service on its model."""
    settings, base = Settings(), BaseModelSettings()

    def load() -> ServedTrainer:
        folder = located(base.model) if base.model else model_folder(VISTA, "generator", settings)
        return serve(folder, base.precision)

    queue = EngineQueue(load, waiting=serving.waiting)
    servicer = TrainerServicer(queue, ArtifactStore(settings.artifacts_url))
    handlers = {kind: handler for kind, handler in HANDLERS.items() if base.joint or kind != JOINT.task}
    return [Service("sfumato.v1.TrainerService", partial(add_TrainerServiceServicer_to_server, servicer), queue, handlers)]


if __name__ == "__main__":
    run(services, ADDRESS)
