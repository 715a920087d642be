"""Which weights a run means: the versions of its models, and the references by which workers find them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from orchestrator.recipes.artaug import Model
from orchestrator.spec import RunSpec
from sfumato.runtime.models.references import JUDGE, VISTA, model_folder, scorers_reference, scorers_version, vista_root
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.settings import Settings
from sfumato.vista import weights


def find_models(spec: RunSpec, settings: Settings) -> dict[str, Model]:
    """Version and reference of the generator, the understanding module, the scorers and, of Vista's world, the judge.

    The reference of a folder is its path, which means something on this machine only.

    Raises:
        InvalidInput: a reference names nothing, or a folder where the settings allow none.
        MissingWeights, BrokenWeights: a model is not here and cannot be fetched, or its files are damaged.
    """
    models = tuple(sorted((str(metric), reference) for metric, reference in spec.score.models.items()))
    here = settings.weights, settings.model_folders, stamp(settings)
    return dict(_found(spec.model, spec.ground.model, tuple(spec.score.metrics), models, *here))


def stamp(settings: Settings) -> tuple[int, ...]:
    """Changes whenever Vista's weights are sealed anew, so that what was read once need not be read for every request."""
    manifests = [vista_root(settings) / part / weights.MANIFEST for part in weights.PARTS]
    return tuple(manifest.stat().st_mtime_ns if manifest.is_file() else 0 for manifest in manifests)


@lru_cache(maxsize=64)
def _found(
    model: str,
    understanding: str,
    metrics: tuple[str, ...],
    named: tuple[tuple[str, str], ...],
    root: Path | None,
    folders: bool,
    _: tuple[int, ...],
) -> dict[str, Model]:
    settings = Settings(weights=root, model_folders=folders)
    scorers = scorers_reference(metrics)
    models = {
        "generator": _model(model, "generator", settings),
        "understanding": _model(understanding, "understanding", settings),
        "scorers": Model(scorers_version(scorers, dict(named), settings), scorers),
    }
    return models | ({"judge": Model(scorers_version(JUDGE, {}, settings), JUDGE)} if model == VISTA else {})


def _model(reference: str, part: str, settings: Settings) -> Model:
    folder = model_folder(reference, part, settings)
    own = reference != VISTA and Path(reference).is_dir()
    return Model(model_version(folder), str(folder.resolve()) if own else reference)
