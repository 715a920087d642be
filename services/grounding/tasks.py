"""The grounding service's tasks: payload to engine and back, nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from services.grounding.engine import GroundingEngine
from services.grounding.profiles import profile_named
from sfumato.errors import AnswerRejected, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.device import pick_device
from sfumato.runtime.images import decode_image
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Json, Output, Task
from sfumato.types import Image


def ground(task: Task, artifacts: ArtifactStore) -> Output:
    """Advice about every item's picture; the values are ``{"regions": [{"prompt", "box"}], "rejected": why, or ""}``.

    A model that talks nonsense about one picture costs that picture its advice, not the task.
    """
    url = Settings().vlm_url if task.params["backend"] == "vllm" else ""
    engine = _engine(task.params["backend"], task.params["profile"], task.model_path, url)

    def one(image: Image, prompt: str) -> Json:
        try:
            grounding = engine.ground(image, prompt)
        except AnswerRejected as rejection:
            return {"regions": [], "rejected": str(rejection)}
        return {"regions": [{"prompt": region.prompt, "box": list(region.box)} for region in grounding.regions], "rejected": ""}

    images = [decode_image(artifacts.get(item["picture"])) for item in task.items]
    with ThreadPoolExecutor(engine.backend.concurrency) as pool:
        return Output(values=list(pool.map(one, images, [item["prompt"] for item in task.items])))


HANDLERS = {"grounding.ground": ground}


@lru_cache(maxsize=1)
def _engine(backend: str, profile: str, path: str, url: str) -> GroundingEngine:
    chosen = profile_named(profile)
    if backend == "transformers":
        from services.grounding.local_backend import LocalBackend

        return GroundingEngine(LocalBackend(Path(path), device=pick_device()), chosen)
    if not url:
        raise Unavailable("No address of a model server is known.", hint="Set SFUMATO_VLM_URL, or ground with the transformers backend.")
    from services.grounding.http_backend import HttpBackend

    return GroundingEngine(HttpBackend(url, chosen.name), chosen)
