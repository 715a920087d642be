"""The services of this machine: the one place that knows their modules."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.recipes.models import UnderstandingModel
from orchestrator.transports.local import LocalService
from sfumato.errors import InvalidInput
from sfumato.runtime.models.references import model_folder
from sfumato.runtime.settings import Settings

if TYPE_CHECKING:
    from orchestrator.runs.records import Record
    from sfumato.cli.companion import BackgroundVlm

MODULES = {
    "generator": "services.generator.tasks",
    "grounding": "services.grounding.tasks",
    "scoring": "services.scoring.tasks",
    "trainer": "services.trainer.tasks",
    "joint": "services.trainer.tasks",
}
PARALLEL = ("generator", "trainer")
"""Services of which several workers run side by side where models are small."""


def local_services(record: Record, folder: Path, settings: Settings) -> dict[str, LocalService]:
    """Workers for every service that a run uses. Small models get one a core and stay resident; large ones share the device by turns.

    Raises:
        InvalidInput: the method uses a service that is not part of sfumato.
    """
    recipe, plan = record.recipe, record.plan()
    unknown = [service for service in recipe.services if service not in MODULES]
    if unknown:
        raise InvalidInput("recipe", f"{recipe.name} uses a service that is called {unknown[0]!r}, and there is none.")
    # It is one machine, and the user who began the run may read its folders.
    environment = worker_environment(settings) | {"SFUMATO_MODEL_FOLDERS": "true"}
    small = plan.spec.model == "vista"
    workers = settings.workers or (min(os.cpu_count() or 1, 4) if small else 1)
    vlm = next((model for model in recipe.models(plan.spec) if isinstance(model, UnderstandingModel)), None)
    companion = _vlm_server(vlm, plan.models[vlm.part].reference, folder, settings) if vlm is not None else None
    services = {
        name: LocalService(MODULES[name], workers if name in PARALLEL else 1, small, environment) for name in recipe.services
    }
    if vlm is not None:
        server = companion.environment if companion is not None else {"SFUMATO_VLM_URL": settings.vlm_url}
        services["grounding"] = LocalService(MODULES["grounding"], 1, small, environment | server, companion)
    return services


def _vlm_server(vlm: UnderstandingModel, reference: str, folder: Path, settings: Settings) -> BackgroundVlm | None:
    """A vLLM server that runs beside the grounding worker; None where another answers, or the worker holds the model itself."""
    if vlm.backend != "vllm" or settings.vlm_url:
        return None
    from sfumato.cli.companion import BackgroundVlm
    from sfumato.cli.vlm import served_model

    here = settings.model_copy(update={"model_folders": True})
    model = served_model(vlm.profile, model_folder(reference, vlm.part, here), settings.vlm_gpus)
    return BackgroundVlm(model, folder / "vllm.log", settings.threads)


def worker_environment(settings: Settings) -> dict[str, str]:
    """The environment of every process that computes: how many threads it has, and no progress bars."""
    threads = str(settings.threads)
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
