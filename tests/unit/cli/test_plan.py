"""`sfumato run SPEC --plan`: checked and counted, nothing started, fetched or written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.cli.estimate import look_ahead
from sfumato.errors import InvalidInput, MissingWeights
from sfumato.runtime.settings import Settings
from tests.unit.orchestrator.rehearsal import write_spec

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of the hub's, and a hub that does not answer: a plan needs neither."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _plan(folder: Path, spec: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sfumato.cli.main", "run", str(spec), "--plan", "--runs", str(folder / "runs"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    return subprocess.run(line, capture_output=True, encoding="utf-8", env=environment, timeout=120, check=False, cwd=ROOT)


def test_the_papers_run_is_planned_without_its_models_and_prompts(tmp_path: Path) -> None:
    result = _plan(tmp_path, ROOT / "configs" / "artaug-flux1-dev.yaml", "--json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    where = {model["part"]: model["where"] for model in plan["models"]}
    assert (where["generator"], where["understanding"], where["score.clip"]) == ("hub", "hub", "hub")
    assert (where["score.aesthetic"], where["score.mps"]) == ("absent", "absent")
    assert {row["field"]: row["count"] for row in plan["prompts"]} == {"prompts": 3000, "evaluate": 1000, "tune": 200}
    stages = {row["stage"]: row for row in plan["stages"]}
    assert stages["generate"]["iteration"] == {"tasks": 750, "forwards": 90_000, "questions": 0, "pictures": 0}
    assert stages["regenerate"]["run"]["forwards"] == 8 * 3000 * 30 * 6
    assert {row["service"] for row in plan["memory"]} == {"generator", "grounding", "scoring", "trainer"}
    todo = "\n".join(plan["todo"])
    for words in ("hf auth login", "--as aesthetic", "--as mps", "hf download poloclub/diffusiondb"):
        assert words in todo
    assert not (tmp_path / "runs").exists()


def test_the_demo_is_planned_as_a_page(tmp_path: Path) -> None:
    result = _plan(tmp_path, ROOT / "configs" / "artaug-vista.yaml")
    assert result.returncode == 0, result.stderr
    for words in ("generator", "installed", "forwards", "regenerate", "Memory"):
        assert words in result.stdout
    assert not (tmp_path / "runs").exists()


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    write_spec(tmp_path)
    (tmp_path / "spec.yaml").write_text((tmp_path / "spec.yaml").read_text() + "alhpa: 2\n")
    result = _plan(tmp_path, tmp_path / "spec.yaml")
    assert (result.returncode, "alhpa" in result.stderr, "Traceback" in result.stderr) == (2, True, False)


def test_a_missing_file_of_prompts_is_something_to_do(tmp_path: Path) -> None:
    write_spec(tmp_path)
    (tmp_path / "train.txt").unlink()
    outlook = look_ahead(tmp_path / "spec.yaml", Settings())
    assert f"prompts.file: {tmp_path / 'train.txt'} is missing, 10 prompts, one a line." in outlook.todo


def test_the_prompts_that_are_there_are_checked(tmp_path: Path) -> None:
    write_spec(tmp_path)
    (tmp_path / "train.txt").unlink()
    (tmp_path / "heldout.txt").write_text("one alone\n")
    with pytest.raises(InvalidInput, match=r"evaluate.count: .* has 1 prompts, the run asks for 6"):
        look_ahead(tmp_path / "spec.yaml", Settings())


def test_an_unsupported_family_is_refused_by_name(tmp_path: Path) -> None:
    write_spec(tmp_path, model="painter")
    for part in ("vae", "unet"):
        (tmp_path / "painter" / part).mkdir(parents=True)
    (tmp_path / "painter" / "model_index.json").write_text('{"_class_name": "KandinskyPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(InvalidInput, match=r"KandinskyPipeline, which is of no supported family\. Supported: FluxPipeline"):
        look_ahead(tmp_path / "spec.yaml", Settings())


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    write_spec(tmp_path, model="painter")
    (tmp_path / "painter").mkdir()
    with pytest.raises(MissingWeights, match="holds no diffusers pipeline"):
        look_ahead(tmp_path / "spec.yaml", Settings())


def test_an_unknown_model_would_be_fetched(tmp_path: Path) -> None:
    write_spec(tmp_path, model="somebody/painter")
    outlook = look_ahead(tmp_path / "spec.yaml", Settings())
    assert (outlook.models[0].where, outlook.models[0].size) == ("hub", None)
    assert outlook.half[0].total is None
    assert any("somebody/painter would be fetched" in todo for todo in outlook.todo)


@pytest.mark.parametrize("sections", [{"model": "./painter"}, {"ground": "{profile: qwen2-vl, model: nowhere}"}])
def test_what_is_neither_a_folder_nor_a_name_is_refused(tmp_path: Path, sections: dict[str, str]) -> None:
    write_spec(tmp_path, **sections)
    with pytest.raises(InvalidInput, match="model: .* is neither a folder nor a name on the hub"):
        look_ahead(tmp_path / "spec.yaml", Settings())


def test_a_strategy_that_the_profile_cannot_follow_is_refused(tmp_path: Path) -> None:
    write_spec(tmp_path, ground="{profile: vista, strategy: three-turn}")
    with pytest.raises(InvalidInput, match="single-turn only"):
        look_ahead(tmp_path / "spec.yaml", Settings())
