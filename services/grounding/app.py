"""The grounding service's program: ``python -m services.grounding.app``; settings ``SFUMATO_GROUNDING_*`` and as of all services."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic_settings import SettingsConfigDict

from services.grounding.engine import GroundingEngine
from services.grounding.http_backend import START_IT
from services.grounding.profiles import Strategy, profile_named
from services.grounding.servicer import GroundingServicer
from services.grounding.tasks import HANDLERS, backend_of, local_backend_of
from sfumato.errors import Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.references import VISTA, model_folder
from sfumato.runtime.serving.engine_queue import EngineQueue
from sfumato.runtime.serving.server import Service, run
from sfumato.runtime.settings import FiledSettings, ServingSettings, Settings
from sfumato.v1.grounding_pb2_grpc import add_GroundingServiceServicer_to_server

ADDRESS = "127.0.0.1:7102"


class QuestionSettings(FiledSettings):
    """The model that this service asks: ``SFUMATO_GROUNDING_*``."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_GROUNDING_", frozen=True)

    # Where the model runs: vllm is an OpenAI-compatible server at SFUMATO_VLM_URL, transformers is this process.
    backend: Literal["vllm", "transformers"] = "vllm"
    # The model's conventions: vista, qwen2-vl, qwen2.5-vl or qwen3-vl.
    profile: Literal["vista", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"] = "vista"
    # vllm: the model's name on the server; empty for the profile's name. transformers: the reference of its weights; empty for vista.
    model: str = ""
    # Default strategy for advice: single-turn or three-turn.
    strategy: Strategy = Strategy.single_turn


def services(serving: ServingSettings) -> Sequence[Service]:
    """The grounding service on its engine."""
    settings, asking = Settings(), QuestionSettings()

    def load() -> GroundingEngine:
        if asking.backend == "transformers":
            backend = local_backend_of(model_folder(asking.model or VISTA, "understanding", settings))
            return GroundingEngine(backend, profile_named(asking.profile), asking.strategy)
        if not settings.vlm_url:
            raise Unavailable("No VLM server is known.", hint=START_IT)
        backend = backend_of(settings, tuple(name for name in (asking.profile, asking.model) if name))
        return GroundingEngine(backend, profile_named(asking.profile), asking.strategy)

    queue = EngineQueue(load, waiting=serving.waiting)
    servicer = GroundingServicer(queue, ArtifactStore(settings.artifacts_url))
    return [Service("sfumato.v1.GroundingService", partial(add_GroundingServiceServicer_to_server, servicer), queue, HANDLERS)]


if __name__ == "__main__":
    run(services, ADDRESS)
