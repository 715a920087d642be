"""Which weights a task means: every machine finds its own, and refuses when they are others."""

import shutil
from pathlib import Path

import pytest

from sfumato.errors import InvalidInput, MissingWeights
from sfumato.runtime.models.references import (
    checked_folder,
    checked_scorers,
    model_folder,
    present_folder,
    scorers_reference,
    scorers_version,
    vista_root,
)
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.settings import Settings
from sfumato.vista import weights

HERE, SERVICE = Settings(model_folders=True), Settings(model_folders=False)


@pytest.fixture
def retrained(tmp_path: Path) -> Settings:
    """A machine whose CLIP is another."""
    shutil.copytree(weights.ROOT, tmp_path / "weights")
    shutil.rmtree(tmp_path / "weights" / "clip")
    shutil.copytree(weights.ROOT / "pickscore", tmp_path / "weights" / "clip")
    return Settings(weights=tmp_path / "weights")


def test_vistas_models_are_found_wherever_they_lie(retrained: Settings) -> None:
    assert model_folder("vista", "generator", SERVICE) == weights.ROOT / "generator"
    assert model_folder("vista", "generator", retrained) == vista_root(retrained) / "generator"
    version = model_version(weights.ROOT / "generator")
    assert checked_folder("vista", "generator", version, retrained) == vista_root(retrained) / "generator"


def test_other_weights_than_the_task_means_are_refused(retrained: Settings) -> None:
    version = model_version(weights.ROOT / "clip")
    assert checked_folder("vista", "clip", version, SERVICE) == weights.ROOT / "clip"
    with pytest.raises(MissingWeights, match=rf"vista .clip. here have the version .*the task means {version[:12]}.*the same package"):
        checked_folder("vista", "clip", version, retrained)


def test_a_folder_is_for_one_machine_only(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    version = model_version(tmp_path)
    assert checked_folder(str(tmp_path), "generator", version, HERE) == tmp_path.resolve()
    for path in (str(tmp_path), "../somewhere", "/etc", "", "C:\\models"):
        with pytest.raises(InvalidInput, match="takes no folders.*SFUMATO_MODEL_FOLDERS"):
            checked_folder(path, "generator", version, SERVICE)


def test_scorers_have_one_version_together(retrained: Settings) -> None:
    reference = scorers_reference(("aesthetic", "nudenet"))
    assert reference == "aesthetic,clip,nudenet"
    version = scorers_version(reference, {}, SERVICE)
    assert checked_scorers(reference, {}, version, SERVICE) == weights.ROOT
    for models, settings in (({}, retrained), ({"clip": str(weights.ROOT / "pickscore")}, HERE)):
        with pytest.raises(MissingWeights, match="the scorers"):
            checked_scorers(reference, models, version, settings)
    with pytest.raises(InvalidInput, match="takes no folders"):
        checked_scorers(reference, {"clip": str(weights.ROOT / "pickscore")}, version, SERVICE)


def test_what_is_not_here_is_not_fetched_to_look_at_it() -> None:
    assert present_folder("vista", "generator", SERVICE) == weights.ROOT / "generator"
    assert present_folder("nobody/nothing", "generator", SERVICE) is None
    assert present_folder("", "generator", SERVICE) is None
