"""The trainer's tasks: payload to objectives and adapter algebra and back."""

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

from services.trainer.checkpoint import FitStep
from services.trainer.group import Alone, Group, raise_together
from services.trainer.objectives.catalog import OBJECTIVES, objective_of
from services.trainer.objectives.objective import PreparedTraining, TrainingSample
from services.trainer.served import TrainedModel, model_of
from sfumato.errors import Diverged, InvalidInput
from sfumato.lora import adapter as algebra
from sfumato.lora.files import verify
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.adapters import decode_adapter, encode_adapter
from sfumato.runtime.models.references import checked_folder
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Handler, Output, Task

log = logging.getLogger(__name__)

ALONE = Alone()
LOG_INTERVAL = 20.0
"""Seconds between two log lines about a training."""


def train(task: Task, artifacts: ArtifactStore, group: Group = ALONE) -> Output:
    """Train by an objective of the catalog; files ``<i>.safetensors`` of the adapters that did not diverge.

    The kind of task and ``params.objective`` name the objective. Further ``params`` are ``width``, ``height``, ``adapter`` (the SHA-256
    of the LoRA of earlier iterations, which is fused first, or empty for the base model), ``precision`` of the base weights (``float32``
    where absent) and the settings of the objective. Items are prompts, seeds, and the SHA-256 of the latents that the objective uses.

    Values, one for each adapter: ``losses`` of every step, ``diverged`` (empty, or the reason), the ``rank`` of the adapter, and
    ``probes``: for every fit that was made, the loss on fixed draws at its start, after three quarters and at its end. A worker that is
    killed continues from a checkpoint. Every process of ``group`` makes this call; the leader's result counts.
    """
    checkpoint, leads = StoredCheckpoint(artifacts, task.id), group.rank == 0
    training, data, fault = None, None, None
    try:
        training = _training(task, artifacts)
        data = checkpoint.load() if leads else None
    except Exception as error:  # of any kind: the other processes would wait for this one
        fault = error
    raise_together(group, fault)
    assert training is not None
    data = group.broadcast(data or b"") or None
    results = training.adapters(group, data, checkpoint if leads else None, _ProgressLog(task.kind) if leads else None)
    if leads:
        checkpoint.delete()
    values, files = [], {}
    for index, result in enumerate(results):
        if isinstance(result, Diverged):
            values.append({"losses": [], "diverged": str(result), "rank": 0, "probes": []})
        else:
            probes = [[probe.start, probe.late, probe.end] for probe in result.probes]
            values.append({"losses": list(result.losses), "diverged": "", "rank": result.rank, "probes": probes})
            files[f"{index}.safetensors"] = encode_adapter(result.adapter)
    return Output(values, files)


def _training(task: Task, artifacts: ArtifactStore) -> PreparedTraining:
    params = dict(task.params)
    objective = objective_of(task.kind, params.get("objective"))
    width, height, digest = params.pop("width"), params.pop("height"), params.pop("adapter")
    model = _model(task, params.pop("precision", "float32"), digest, artifacts)
    samples = [
        TrainingSample(item["prompt"], {name: _latents(item[name], artifacts) for name in objective.pictures}, item.get("seed", 0))
        for item in task.items
    ]
    return objective.training(model.pipeline, samples, params, width, height)


class _ProgressLog:
    """Logs the step, the loss and the estimated seconds left of the fit in progress, every `LOG_INTERVAL` seconds."""

    def __init__(self, kind: str) -> None:
        self._kind, self._fit = kind, ""
        self._first = (0, 0.0)
        self._due = time.monotonic() + LOG_INTERVAL

    def __call__(self, step: FitStep) -> None:
        now = time.monotonic()
        if step.fit != self._fit:
            self._fit, self._first = step.fit, (step.done, now)
        elif now >= self._due:
            done, began = self._first
            left = (step.total - step.done) * (now - began) / (step.done - done)
            log.info("%s (%s): step %d of %d, loss %.4f, %.0f s left.", self._kind, step.fit, step.done, step.total, step.loss, left)
            self._due = now + LOG_INTERVAL


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
    # One rank for all modules: diffusers before 0.42 loads another one at a wrong scale.
    stacked = algebra.padded(algebra.stack([decode_adapter(artifacts.get(digest)) for digest in task.items], alphas))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        path.write_bytes(encode_adapter(stacked))
        pipeline = model_of(_folder(task), task.params.get("precision", "float32")).pipeline
        difference = verify(path, cast(FluxPipeline, pipeline), stacked).difference
    return Output({"difference": difference}, {"adapter.safetensors": encode_adapter(stacked)})


HANDLERS: dict[str, Handler] = {objective.task: train for objective in OBJECTIVES.values()}
HANDLERS |= {"trainer.average": average, "trainer.fuse": fuse}


def _model(task: Task, precision: str, adapter: str, artifacts: ArtifactStore) -> TrainedModel:
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
        """Its key in the store."""
        return f"checkpoints/{self.task_id[:2]}/{self.task_id}.safetensors"

    def load(self) -> bytes | None:
        """See `Checkpoint`."""
        return self.artifacts.read_key(self.key)

    def save(self, data: bytes) -> None:
        """See `Checkpoint`; the store replaces a file atomically."""
        self.artifacts.write_key(self.key, data)

    def delete(self) -> None:
        """Remove it: the training is done."""
        self.artifacts.delete_key(self.key)
