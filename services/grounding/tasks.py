"""The grounding tasks: payload to engine and back, nothing else."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx

from services.grounding.engine import Backend, GroundingEngine
from services.grounding.http_backend import HttpBackend
from services.grounding.profiles import profile_named
from sfumato.errors import AnswerRejected, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.device import pick_device
from sfumato.runtime.images import decode_image
from sfumato.runtime.tasks import Output, Task

# Seconds a worker waits for the server that was started beside it.
START = 600.0


def ground(task: Task, artifacts: ArtifactStore) -> Output:
    """Ask about every item's picture; the values are ``{"regions": [{"prompt", "box"}], "raw", "rejected"}``.

    One question at a time: a served model's last bits depend on what else is in its batch.
    """
    engine = _engine(task.params["backend"], task.params["profile"], task.model_path)
    return Output(values=[_ask(engine, artifacts.get(item["picture"]), item["prompt"]) for item in task.items])


HANDLERS = {"grounding.ground": ground}


def _ask(engine: GroundingEngine, png: bytes, prompt: str) -> dict[str, Any]:
    try:
        answer = engine.ground(decode_image(png), prompt)
    except AnswerRejected as rejected:  # a picture without advice is a result, not a failure
        return {"regions": [], "raw": rejected.raw, "rejected": rejected.message}
    regions = [{"prompt": region.prompt, "box": list(region.box)} for region in answer.regions]
    return {"regions": regions, "raw": answer.raw, "rejected": ""}


@lru_cache(maxsize=1)
def _engine(backend: str, profile: str, path: str) -> GroundingEngine:
    return GroundingEngine(_served(profile) if backend == "vllm" else _local(path), profile_named(profile))


def _served(profile: str) -> Backend:
    url = os.environ.get("SFUMATO_VLM_URL", "")
    if not url:
        raise Unavailable("No VLM server is known.", hint="Set SFUMATO_VLM_URL, or ground.backend: transformers in the spec.")
    root = url.rstrip("/").removesuffix("/v1")
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{root}/health", timeout=5).is_success:
                return HttpBackend(root, profile)
        except httpx.HTTPError:
            pass  # it is still starting: that is what is being waited for
        time.sleep(0.5)
    raise Unavailable(f"The VLM server at {root} did not become healthy in {START:.0f} s.", hint="Try it by hand: sfumato vlm serve")


def _local(path: str) -> Backend:
    from services.grounding.local_backend import LocalBackend

    return LocalBackend(Path(path), device=pick_device())
