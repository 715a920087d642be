"""The model that a trainer process keeps loaded; gRPC calls and tasks train on the same copy of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline

from sfumato.diffusion.families import family_of
from sfumato.diffusion.loading import load_pipeline
from sfumato.lora.fuse import Fuser
from sfumato.runtime.device import pick_device, precision_named
from sfumato.runtime.models.last_loaded import LastLoaded
from sfumato.runtime.models.versions import model_version


class TrainedModel:
    """A pipeline, and the fuser that writes adapters of earlier iterations into its weights."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.fuser = Fuser(family_of(pipeline).denoiser)


@dataclass(frozen=True, slots=True, eq=False)
class ServedTrainer:
    """What a service trains on: ``model()`` returns the model, loaded again if a task replaced it; ``base`` is its version."""

    model: Callable[[], TrainedModel]
    base: str


def serve(folder: Path, precision: str) -> ServedTrainer:
    """The model in a folder, loaded, for a service's lane. Raises: as `model_of`."""
    model_of(folder, precision)
    return ServedTrainer(lambda: model_of(folder, precision), model_version(folder))


def model_of(folder: Path, precision: str) -> TrainedModel:
    """The process's model.

    Raises:
        InvalidInput: an unknown precision.
        MissingWeights, BrokenWeights: as `load_pipeline`.
    """
    return _loaded(folder.resolve(), precision)


@LastLoaded
def _loaded(folder: Path, precision: str) -> TrainedModel:
    return TrainedModel(load_pipeline(folder, dtype=precision_named(precision), device=pick_device()))
