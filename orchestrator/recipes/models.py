"""The weights that a run needs: their versions, and the references by which workers find them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from sfumato.runtime.models.references import JUDGE, VISTA, model_folder, scorers_reference, scorers_version, vista_root
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.settings import Settings
from sfumato.vista import weights


@dataclass(frozen=True, slots=True)
class Model:
    """The version of a model (the hash of its weights), and its reference (see `sfumato.runtime.models.references`)."""

    version: str
    reference: str


class Needed(Protocol):
    """Weights that a run needs; ``part`` is their role in the run. Hashable."""

    @property
    def part(self) -> str:
        """Their role in the run."""
        ...

    def find(self, settings: Settings) -> Model:
        """Their version on this machine, and their reference.

        Raises:
            InvalidInput: the reference does not exist, or is a folder and the settings do not allow folders.
            MissingWeights, BrokenWeights: they are not on this machine and cannot be fetched, or their files are damaged.
        """
        ...


@dataclass(frozen=True, slots=True)
class GeneratorModel:
    """The pipeline that paints and is trained."""

    reference: str
    part: str = "generator"

    def find(self, settings: Settings) -> Model:
        """See `Needed`."""
        return _folder_model(self.reference, self.part, settings)


@dataclass(frozen=True, slots=True)
class UnderstandingModel:
    """The vision-language model, with its backend and profile (`services.grounding.profiles`)."""

    reference: str
    backend: str
    profile: str
    strategy: str
    part: str = "understanding"

    def find(self, settings: Settings) -> Model:
        """See `Needed`."""
        return _folder_model(self.reference, self.part, settings)


@dataclass(frozen=True, slots=True)
class ScorerModels:
    """The scorers of some metrics, which share one version; ``named`` are weights by metric, in their order."""

    metrics: tuple[str, ...]
    named: tuple[tuple[str, str], ...] = ()
    part: str = "scorers"

    def find(self, settings: Settings) -> Model:
        """See `Needed`."""
        reference = scorers_reference(self.metrics)
        return Model(scorers_version(reference, dict(self.named), settings), reference)


@dataclass(frozen=True, slots=True)
class JudgeModels:
    """The independent judge of Vista's pictures, for reports."""

    part: str = "judge"

    def find(self, settings: Settings) -> Model:
        """See `Needed`."""
        return Model(scorers_version(JUDGE, {}, settings), JUDGE)


def find_models(needed: Iterable[Needed], settings: Settings) -> dict[str, Model]:
    """The models of a run by their part. The reference of a folder is its path, which is only valid on this machine.

    Raises:
        InvalidInput, MissingWeights, BrokenWeights: see `Needed.find`.
    """
    return dict(_found(tuple(needed), settings.weights, settings.model_folders, stamp(settings)))


def stamp(settings: Settings) -> tuple[int, ...]:
    """A cache key that changes when Vista's weights are sealed again."""
    manifests = [vista_root(settings) / part / weights.MANIFEST for part in weights.PARTS]
    return tuple(manifest.stat().st_mtime_ns if manifest.is_file() else 0 for manifest in manifests)


@lru_cache(maxsize=64)
def _found(needed: tuple[Needed, ...], root: Path | None, folders: bool, _: tuple[int, ...]) -> Mapping[str, Model]:
    settings = Settings(weights=root, model_folders=folders)
    return {model.part: model.find(settings) for model in needed}


def _folder_model(reference: str, part: str, settings: Settings) -> Model:
    folder = model_folder(reference, part, settings)
    own = reference != VISTA and Path(reference).is_dir()
    return Model(model_version(folder), str(folder.resolve()) if own else reference)
