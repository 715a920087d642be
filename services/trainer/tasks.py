"""The trainer's tasks: payload to engine and adapter algebra and back, nothing else."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffusers import FluxPipeline  # pyright: ignore[reportPrivateImportUsage]
from safetensors.torch import load

from services.trainer.engine import Pair, TrainSettings, train_pairs
from services.trainer.warm import model_of
from sfumato.errors import Diverged, InvalidInput
from sfumato.lora import adapter as algebra
from sfumato.lora.files import verify
from sfumato.runtime.adapters import decode_adapter, encode_adapter
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.references import checked_folder
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Output, Task


def train(task: Task, artifacts: ArtifactStore) -> Output:
    """Train the pairs of the items together; files ``<i>.safetensors`` of those that did not diverge.

    ``params`` are the fields of `TrainSettings`, ``width``, ``height`` and ``adapter``: the SHA-256 of the LoRA that earlier
    iterations made (theta so far is the model with it fused), or empty for the base model; ``precision`` of the base weights may be
    left out, ``float32`` then. Values, one per item: ``losses`` of every step, ``diverged`` (empty, or the reason), the ``rank`` of
    the adapter, and ``probes``: of every fit that was made, the loss on fixed draws at its start, after three quarters and at its
    end. A worker that is killed goes on from a checkpoint.
    """
    params = dict(task.params)
    width, height, digest = params.pop("width"), params.pop("height"), params.pop("adapter")
    model = model_of(_folder(task), params.pop("precision", "float32"))
    model.fuser.use(((digest, 1.0),) if digest else (), lambda: decode_adapter(artifacts.get(digest)) if digest else None)

    def latents(digest: str) -> Any:
        return load(artifacts.get(digest))["latents"]

    pairs = [Pair(item["prompt"], latents(item["before"]), latents(item["after"]), item["seed"], width, height) for item in task.items]
    checkpoint = StoredCheckpoint(artifacts, task.id)
    values, files = [], {}
    for index, result in enumerate(train_pairs(model.pipeline, pairs, TrainSettings(**params), checkpoint)):
        if isinstance(result, Diverged):
            values.append({"losses": [], "diverged": str(result), "rank": 0, "probes": []})
        else:
            probes = [[probe.start, probe.late, probe.end] for probe in result.probes]
            values.append({"losses": list(result.losses), "diverged": "", "rank": result.rank, "probes": probes})
            files[f"{index}.safetensors"] = encode_adapter(result.adapter)
    checkpoint.delete()
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
    """``sum_i alphas[i] * item_i`` as one LoRA file (earlier iterations first, the new mean last), proven by loading it.

    The file goes through diffusers' own loader and every module's update is compared; the value is the largest difference.
    """
    alphas = task.params["alphas"]
    if len(alphas) != len(task.items):
        raise InvalidInput("alphas", f"there are {len(alphas)} for {len(task.items)} adapters.")
    stacked = algebra.stack([decode_adapter(artifacts.get(digest)) for digest in task.items], alphas)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        path.write_bytes(encode_adapter(stacked))
        pipeline = model_of(_folder(task), task.params.get("precision", "float32")).pipeline
        difference = verify(path, cast(FluxPipeline, pipeline), stacked)
    return Output({"difference": difference}, {"adapter.safetensors": encode_adapter(stacked)})


HANDLERS = {"trainer.train": train, "trainer.average": average, "trainer.fuse": fuse}


def _folder(task: Task) -> Path:
    return checked_folder(task.model_reference, "generator", task.model, Settings())


@dataclass(slots=True)
class StoredCheckpoint:
    """A training's checkpoint in the artifact store, under its task's id."""

    artifacts: ArtifactStore
    task_id: str
    interval: float = 20.0

    @property
    def key(self) -> str:
        """Where it lies."""
        return f"checkpoints/{self.task_id[:2]}/{self.task_id}.safetensors"

    def load(self) -> bytes | None:
        """See `Checkpoint`."""
        return self.artifacts.read_key(self.key)

    def save(self, data: bytes) -> None:
        """See `Checkpoint`; the store replaces a file at once."""
        self.artifacts.write_key(self.key, data)

    def delete(self) -> None:
        """The training is done."""
        self.artifacts.delete_key(self.key)
