"""The trainer's tasks: payload to engine and adapter algebra and back, nothing else."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from diffusers import DiffusionPipeline, FluxPipeline  # pyright: ignore[reportPrivateImportUsage]
from safetensors.torch import load

from services.trainer.engine import Pair, TrainSettings, train_pairs
from sfumato.diffusion.loading import load_pipeline
from sfumato.errors import Diverged
from sfumato.lora import adapter as algebra
from sfumato.lora.files import verify
from sfumato.runtime.adapters import decode_adapter, encode_adapter
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.device import pick_device
from sfumato.runtime.tasks import Output, Task


def train(task: Task, artifacts: ArtifactStore) -> Output:
    """Train the pairs of the items together; files ``<i>.safetensors`` of those that did not diverge."""
    params = dict(task.params)
    width, height = params.pop("width"), params.pop("height")

    def latents(digest: str) -> Any:
        return load(artifacts.get(digest))["latents"]

    pairs = [Pair(item["prompt"], latents(item["before"]), latents(item["after"]), item["seed"], width, height) for item in task.items]
    values, files = [], {}
    for index, result in enumerate(train_pairs(_pipeline(task.model_path), pairs, TrainSettings(**params))):
        if isinstance(result, Diverged):
            values.append({"losses": [], "diverged": str(result)})
        else:
            values.append({"losses": list(result.losses), "diverged": ""})
            files[f"{index}.safetensors"] = encode_adapter(result.adapter)
    return Output(values, files)


def average(task: Task, artifacts: ArtifactStore) -> Output:
    """The exact mean of the items' adapters, compressed to ``params.rank`` if one is given; its rank and the relative error."""
    mean = algebra.mean([decode_adapter(artifacts.get(digest)) for digest in task.items])
    error = 0.0
    if task.params["rank"] is not None:
        compressed = algebra.compress(mean, task.params["rank"])
        mean, error = compressed.adapter, compressed.error
    values = {"rank": max(mean.ranks.values()), "error": error, "norm": algebra.norm(mean)}
    return Output(values, {"adapter.safetensors": encode_adapter(mean)})


def fuse(task: Task, artifacts: ArtifactStore) -> Output:
    """``alpha`` times the adapter as one LoRA file, loaded back through diffusers and compared update by update."""
    scaled = algebra.scale(decode_adapter(artifacts.get(task.items[0])), task.params["alpha"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        path.write_bytes(encode_adapter(scaled))
        difference = verify(path, cast(FluxPipeline, _pipeline(task.model_path)), scaled)
    return Output({"difference": difference}, {"adapter.safetensors": encode_adapter(scaled)})


HANDLERS = {"trainer.train": train, "trainer.average": average, "trainer.fuse": fuse}


@lru_cache(maxsize=1)
def _pipeline(path: str) -> DiffusionPipeline:
    return load_pipeline(Path(path), device=pick_device())
