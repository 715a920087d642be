"""The trainer's one model in a process: calls and tasks train on the same, with one copy of the weights."""

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


class WarmModel:
    """A pipeline, and what puts earlier iterations' adapters into its weights and takes them out again."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.fuser = Fuser(family_of(pipeline).denoiser)


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """What a service trains adapters for: the model, loaded again where a task for another took its place; its base's version."""

    model: Callable[[], WarmModel]
    base: str


def serve(folder: Path, precision: str) -> ServedModel:
    """The model in a folder, loaded, for a service's lane. Raises: as `model_of`."""
    model_of(folder, precision)
    return ServedModel(lambda: model_of(folder, precision), model_version(folder))


def model_of(folder: Path, precision: str) -> WarmModel:
    """The process's model.

    Raises:
        InvalidInput: an unknown precision.
        MissingWeights, BrokenWeights: as `load_pipeline`.
    """
    return _loaded(folder.resolve(), precision)


@LastLoaded
def _loaded(folder: Path, precision: str) -> WarmModel:
    return WarmModel(load_pipeline(folder, dtype=precision_named(precision), device=pick_device()))
