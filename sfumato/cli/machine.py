"""The services of this machine: the one place that knows their modules."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.transport import LocalService

from orchestrator.recipes.artaug import Plan
from sfumato.runtime.models.references import model_folder
from sfumato.runtime.settings import Settings


def local_services(plan: Plan, folder: Path, settings: Settings) -> dict[str, LocalService]:
    """Workers for every service. Small models get one a core and stay up all the run; large ones share the device by turns."""
    # It is one machine, and who began the run may read its folders.
    environment = worker_environment(settings) | {"SFUMATO_MODEL_FOLDERS": "true"}
    small = plan.spec.model == "vista"
    workers = settings.workers or (min(os.cpu_count() or 1, 4) if small else 1)
    companion, server = None, {"SFUMATO_VLM_URL": settings.vlm_url}
    if plan.spec.ground.backend == "vllm" and not settings.vlm_url:
        from sfumato.cli.companion import BackgroundVlm
        from sfumato.cli.vlm import served_model

        here = settings.model_copy(update={"model_folders": True})
        seeing = model_folder(plan.models["understanding"].reference, "understanding", here)
        model = served_model(plan.spec.ground.profile, seeing, settings.vlm_gpus)
        companion = BackgroundVlm(model, folder / "vllm.log", settings.threads)
        server = companion.environment
    return {
        "generator": LocalService("services.generator.tasks", workers, small, environment),
        "grounding": LocalService("services.grounding.tasks", 1, small, environment | server, companion),
        "scoring": LocalService("services.scoring.tasks", 1, small, environment),
        "trainer": LocalService("services.trainer.tasks", workers, small, environment),
        "joint": LocalService("services.trainer.tasks", 1, small, environment),
    }


def worker_environment(settings: Settings) -> dict[str, str]:
    """What every process that computes is told: how many threads it has, and that nobody watches its progress bars."""
    threads = str(settings.threads)
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
