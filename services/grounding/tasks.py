"""The grounding tasks: payload to engine and back.

The parameters of all kinds hold ``backend`` ("vllm": an OpenAI-compatible server, "transformers": this process) and ``profile``.
A rejected answer, or an unusable item, is a result with the reason in ``rejected``, not a failure of the task.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from services.grounding.engine import Backend, GroundingEngine
from services.grounding.http_backend import START_IT, HttpBackend, model_served
from services.grounding.profiles import Strategy, profile_named
from sfumato.errors import AnswerRejected, InvalidInput, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.device import pick_device
from sfumato.runtime.images import decode_image
from sfumato.runtime.models.references import checked_folder
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Output, Task
from sfumato.types import Image


def ground(task: Task, artifacts: ArtifactStore) -> Output:
    """Advice: items ``{"prompt", "picture"}``; values ``{"regions": [{"prompt", "box"}], "raw", "rejected"}``.

    The parameters may also hold ``strategy``: "single-turn" (the default) or "three-turn".
    """
    engine = _engine(task)

    def one(item: dict[str, Any]) -> dict[str, Any]:
        answer = engine.ground(_picture(artifacts, item["picture"]), item["prompt"])
        regions = [{"prompt": region.prompt, "box": list(region.box)} for region in answer.regions]
        return {"regions": regions, "raw": answer.raw, "rejected": ""}

    return _values(task, engine, one, lambda _, why, raw: {"regions": [], "raw": raw, "rejected": why})


def refine(task: Task, _: ArtifactStore) -> Output:
    """Refinement: items ``{"prompt"}``; values ``{"prompt", "raw", "rejected"}``, the original prompt if rejected."""
    engine = _engine(task)

    def one(item: dict[str, Any]) -> dict[str, Any]:
        prompt, raw = engine.refine(item["prompt"])
        return {"prompt": prompt, "raw": raw, "rejected": ""}

    return _values(task, engine, one, lambda item, why, raw: {"prompt": item["prompt"], "raw": raw, "rejected": why})


def compare(task: Task, artifacts: ArtifactStore) -> Output:
    """Preference, asked in both orders: items ``{"prompt", "a", "b"}``; values ``{"choice", "reason", "raw", "rejected"}``.

    The choice is "A", "B" or "tie"; a rejected answer counts as a tie; ``raw`` is the model's text if rejected, else empty.
    """
    engine = _engine(task)

    def one(item: dict[str, Any]) -> dict[str, Any]:
        said = engine.compare(_picture(artifacts, item["a"]), _picture(artifacts, item["b"]), item["prompt"])
        return {"choice": said.choice, "reason": said.reason, "raw": "", "rejected": ""}

    return _values(task, engine, one, lambda _, why, raw: {"choice": "tie", "reason": "", "raw": raw, "rejected": why})


def ask(task: Task, artifacts: ArtifactStore) -> Output:
    """A yes/no question: items ``{"picture", "question"}``; values ``{"yes", "raw", "rejected"}``, ``yes`` is None if rejected."""
    engine = _engine(task)

    def one(item: dict[str, Any]) -> dict[str, Any]:
        return {"yes": engine.ask(_picture(artifacts, item["picture"]), item["question"]), "raw": "", "rejected": ""}

    return _values(task, engine, one, lambda _, why, raw: {"yes": None, "raw": raw, "rejected": why})


HANDLERS = {"grounding.ground": ground, "grounding.refine": refine, "grounding.compare": compare, "grounding.ask": ask}


def _values(
    task: Task,
    engine: GroundingEngine,
    one: Callable[[dict[str, Any]], dict[str, Any]],
    rejected: Callable[[dict[str, Any], str, str], dict[str, Any]],
) -> Output:
    """One value per item, in order; ``rejected`` makes the value of a rejection from item, reason and the model's text."""

    def value(item: dict[str, Any]) -> dict[str, Any]:
        try:
            return one(item)
        except AnswerRejected as rejection:
            return rejected(item, rejection.message, rejection.raw)
        except InvalidInput as unusable:  # one of thousands of items; the model was not asked
            return rejected(item, unusable.message, "")

    return Output(values=engine.each(value, task.items))


def _picture(artifacts: ArtifactStore, digest: str) -> Image:
    return decode_image(artifacts.get(digest))


def _engine(task: Task) -> GroundingEngine:
    """The engine of the task's parameters.

    Raises:
        InvalidInput: an unknown profile or strategy, or a strategy that the profile does not support.
        Unavailable: no server answers.
    """
    profile = profile_named(task.params["profile"])
    strategy = profile.strategy(task.params.get("strategy", Strategy.single_turn))
    if task.params["backend"] == "vllm":
        backend = _served(profile.name, task.model_reference)  # the server's weights are not checked
    else:
        backend = local_backend_of(checked_folder(task.model_reference, "understanding", task.model, Settings()))
    return GroundingEngine(backend, profile, strategy)


def _served(profile: str, model: str) -> Backend:
    settings = Settings()
    if not settings.vlm_url:
        raise Unavailable("No VLM server is known.", hint=f"{START_IT} Or write ground.backend: transformers in the spec.")
    return backend_of(settings, (profile, model))


def backend_of(settings: Settings, names: tuple[str, ...]) -> Backend:
    """The process's backend for the configured server, with the first of these names that the server has.

    Raises:
        InvalidInput: the authority's file cannot be read.
        Unavailable: no server answers, or it has none of these names.
    """
    return _connected(settings.vlm_url, names, settings.vlm_api_key, settings.vlm_ca, settings.vlm_timeout, settings.vlm_wait)


@lru_cache(maxsize=1)
def _connected(url: str, names: tuple[str, ...], key: SecretStr, ca: Path | None, timeout: float, wait: float) -> Backend:
    """The backend of a server, with the first of these names that it has; cached."""
    api_key = key.get_secret_value()
    return HttpBackend(url, model_served(url, names, api_key=api_key, ca=ca, wait=wait), api_key=api_key, ca=ca, timeout=timeout)


@lru_cache(maxsize=1)
def local_backend_of(folder: Path) -> Backend:
    """The model in a folder, in this process; cached. Raises: as `LocalBackend`."""
    from services.grounding.local_backend import LocalBackend

    return LocalBackend(folder, device=pick_device())
