"""The engine that a generator process keeps loaded; gRPC calls and tasks paint with the same copy of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.generator.engine import GeneratorEngine, GeneratorSettings, load_generator
from sfumato.diffusion.limits import ModelLimits
from sfumato.runtime.device import pick_device, precision_named
from sfumato.runtime.models.last_loaded import LastLoaded
from sfumato.runtime.models.versions import model_version


@dataclass(frozen=True, slots=True, eq=False)
class ServedGenerator:
    """What a service paints with: ``engine()`` returns the engine, loaded again if a task replaced it; ``base`` is its version."""

    engine: Callable[[], GeneratorEngine]
    base: str
    limits: ModelLimits
    settings: GeneratorSettings


def serve(folder: Path, precision: str, settings: GeneratorSettings) -> ServedGenerator:
    """The model in a folder, loaded, for a service's lane. Raises: as `engine_of`."""
    return ServedGenerator(lambda: engine_of(folder, precision), model_version(folder), engine_of(folder, precision).limits, settings)


def engine_of(folder: Path, precision: str) -> GeneratorEngine:
    """The process's engine, on this model.

    Raises:
        InvalidInput: an unknown precision.
        MissingWeights, BrokenWeights: as `load_generator`.
    """
    return _loaded(folder.resolve(), precision)


@LastLoaded
def _loaded(folder: Path, precision: str) -> GeneratorEngine:
    return load_generator(folder, dtype=precision_named(precision), device=pick_device())
