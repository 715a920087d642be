"""Which weights a run means: the versions of its models, and the references by which workers find them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from orchestrator.recipes.artaug import Model
from orchestrator.spec import RunSpec
from sfumato.runtime.references import JUDGE, VISTA, model_folder, scorers_reference, scorers_version
from sfumato.runtime.settings import Settings
from sfumato.runtime.versions import model_version


def find_models(spec: RunSpec, settings: Settings) -> dict[str, Model]:
    """Version and reference of the generator, the understanding module, the scorers and, of Vista's world, the judge.

    The reference of a folder is its path, which means something on this machine only.

    Raises:
        InvalidInput: a reference names nothing, or a folder where the settings allow none.
        MissingWeights, BrokenWeights: a model is not here and cannot be fetched, or its files are damaged.
    """
    scorers = scorers_reference(spec.score.metrics)
    models = {
        "generator": _model(spec.model, "generator", settings),
        "understanding": _model(spec.ground.model, "understanding", settings),
        "scorers": Model(scorers_version(scorers, {str(k): v for k, v in spec.score.models.items()}, settings), scorers),
    }
    return models | ({"judge": Model(scorers_version(JUDGE, {}, settings), JUDGE)} if spec.model == VISTA else {})


def _model(reference: str, part: str, settings: Settings) -> Model:
    folder = model_folder(reference, part, settings)
    if reference == VISTA:
        return Model(model_version(folder), reference)
    if Path(reference).is_dir():
        return Model(model_version(folder), str(folder.resolve()))
    return Model(_hashed(folder), reference)


@lru_cache(maxsize=32)
def _hashed(folder: Path) -> str:
    """The version of a model from the hub, whose folder is named by its revision and never changes: it may be large."""
    return model_version(folder)
