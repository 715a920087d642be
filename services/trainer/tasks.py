"""The trainer's tasks: payload to engine and adapter algebra and back, nothing else."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from diffusers import FluxPipeline  # pyright: ignore[reportPrivateImportUsage]
from safetensors.torch import load
from torch import Tensor

from services.trainer.checkpoint import Step
from services.trainer.engine import Pair, TrainSettings, train_pairs
from services.trainer.group import Alone, Group, all_well
from services.trainer.joint import JointSettings, JointTraining, Picture
from services.trainer.warm import WarmModel, model_of
from sfumato.errors import Diverged, InvalidInput
from sfumato.lora import adapter as algebra
from sfumato.lora.files import verify
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.adapters import decode_adapter, encode_adapter
from sfumato.runtime.models.references import checked_folder
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Output, Task

log = logging.getLogger(__name__)

ALONE = Alone()
TELL = 20.0
"""Seconds between two words on a joint training."""


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
    model = _model(task, params.pop("precision", "float32"), digest, artifacts)
    pairs = [
        Pair(item["prompt"], _latents(item["before"], artifacts), _latents(item["after"], artifacts), item["seed"], width, height)
        for item in task.items
    ]
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


def joint(task: Task, artifacts: ArtifactStore, group: Group = ALONE) -> Output:
    """Train one adapter on the pictures of all items (`prompt`, `latents`), file ``0.safetensors`` unless it diverged.

    ``params`` are the fields of `JointSettings`, and as in `train` ``width``, ``height``, ``adapter`` and ``precision``. One value, as
    `train` has one for each pair. Every process of ``group`` makes this call; what the leader returns counts.
    """
    checkpoint, training, data, fault = StoredCheckpoint(artifacts, task.id), None, None, None
    try:
        training = _joint_training(task, artifacts)
        data = checkpoint.load() if group.rank == 0 else None
    except Exception as error:  # whatever it is, the others must hear of it: they would wait for this process
        fault = error
    all_well(group, fault)
    assert training is not None
    data = group.tell(data or b"") or None
    try:
        trained = training.run(group, data, checkpoint if group.rank == 0 else None, _Told() if group.rank == 0 else None)
    except Diverged as error:
        return Output([{"losses": [], "diverged": str(error), "rank": 0, "probes": []}])
    value = {"losses": list(trained.losses), "diverged": "", "rank": task.params["rank"], "probes": []}
    return Output([value], {"0.safetensors": encode_adapter(trained.adapter)})


class _Told:
    """Says in the log, now and then, how far a joint training is and when it will be done: it is one task, and may take hours."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._due = time.monotonic() + TELL

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = step.done, now
        elif now >= self._due:
            done, began = self._first
            left = (step.total - step.done) * (now - began) / (step.done - done)
            log.info("Joint training: step %d of %d, loss %.4f, %.0f s to go.", step.done, step.total, step.loss, left)
            self._due = now + TELL


def _joint_training(task: Task, artifacts: ArtifactStore) -> JointTraining:
    params = dict(task.params)
    width, height, digest = params.pop("width"), params.pop("height"), params.pop("adapter")
    model = _model(task, params.pop("precision", "float32"), digest, artifacts)
    pictures = [Picture(item["prompt"], _latents(item["latents"], artifacts)) for item in task.items]
    return JointTraining(model.pipeline, pictures, JointSettings(**params), width, height)


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


# What has more to do than one process is a queue of its own: on a cluster it may be done by several (`services.trainer.distributed`).
JOINT = "joint.train"
HANDLERS = {"trainer.train": train, "trainer.average": average, "trainer.fuse": fuse, JOINT: joint}


def _model(task: Task, precision: str, adapter: str, artifacts: ArtifactStore) -> WarmModel:
    """The process's model with an adapter (its SHA-256, or empty) in its weights."""
    model = model_of(_folder(task), precision)
    model.fuser.use(((adapter, 1.0),) if adapter else (), lambda: decode_adapter(artifacts.get(adapter)) if adapter else None)
    return model


def _latents(digest: str, artifacts: ArtifactStore) -> Tensor:
    return load(artifacts.get(digest))["latents"]


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
