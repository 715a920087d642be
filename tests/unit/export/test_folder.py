"""``sfumato export``: the folder, its card, the fused model, and a Bento that is really built and paints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image as Pictures
from typer.testing import CliRunner

from sfumato.cli.main import app
from sfumato.errors import InvalidInput, MissingWeights
from sfumato.export.card import Licence, MethodCard, model_card
from sfumato.export.folder import export_version
from sfumato.registry.records import Base, Lineage, Node, Version, WeightedAdapter
from sfumato.vista import weights
from tests.unit.export.conftest import ASKED, Sample

ROOT = Path(__file__).parents[3]


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_the_folder_holds_every_layout_and_says_how_well_each_loads(sample: Sample) -> None:
    files = {path.relative_to(sample.folder).as_posix() for path in sample.folder.rglob("*") if path.is_file()}
    assert {"README.md", "lineage.json", "service.py", "bentofile.yaml", "model/model_index.json"} <= files
    assert {"lora/diffusers.safetensors", "lora/kohya.safetensors", "lora/peft/adapter_config.json"} <= files
    assert set(sample.made.differences) == {"diffusers", "peft", "kohya"} and max(sample.made.differences.values()) < 1e-5
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]


def test_the_fused_model_paints_the_same_through_plain_diffusers(sample: Sample) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(sample.folder / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(ASKED.prompt, num_inference_steps=ASKED.steps, guidance_scale=1.0, max_sequence_length=32,
                    height=64, width=64, generator=torch.Generator().manual_seed(ASKED.seed))  # fmt: skip
    assert apart(np.array(made.images[0]), sample.wanted) <= 1
    assert apart(sample.plain, sample.wanted) > 20


def test_the_card_tells_base_method_data_metrics_and_licence(sample: Sample) -> None:
    _, header, words = (sample.folder / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["license"] == "apache-2.0" and fields["base_model"] == "vista" and fields["pipeline_tag"] == "text-to-image"
    told = ("## Base", "## Method", "ArtAug", "iteration 1: 1 of 2 pairs kept", "run `artaug-1`", "## Data", "1 pairs", "a <b>boat</b>")
    told += ("## Metrics", "`heldout_aesthetic` = 6.2", "## Licence", "licence of the base model", "## Use", sample.made.version)
    assert [line for line in told if line not in words] == []


def test_a_card_of_an_unknown_licence_and_no_history_says_so() -> None:
    version = Version("a" * 64, 1, Base("b" * 64, "owner/model"), (), {}, "", 0.0, ())
    card = model_card(version, Lineage(), {"model/": "it"}, Licence("other", "their-own", "https://example.org/L"), "x = 1")
    fields = yaml.safe_load(card.split("---\n")[1])
    assert (fields["license"], fields["license_name"], fields["license_link"]) == ("other", "their-own", "https://example.org/L")
    assert "nothing was trained" in card and "none are recorded" in card and "nothing is recorded" in card


def test_a_card_tells_the_words_of_a_method_that_has_some_and_only_the_name_of_another() -> None:
    run, step = Node.about("run", id="r", recipe="mine"), Node.about("iteration", index=2, kept=3)
    nodes = (run, step, Node.about("pair", seed=1), Node.about("prompt", text="a boat"))
    version = Version("a" * 64, 1, Base("b" * 64, "vista"), (WeightedAdapter("c" * 64),), {"beta": 0.5}, "", 0.0, ())
    mine = MethodCard("preferences were learned", "{kept} kept, {lost} lost", ("{pairs} pairs, {prompts} prompts",), {"beta": "strength"})
    card = model_card(version, Lineage(nodes), {}, Licence(), "x = 1", {"mine": mine})
    for line in ("preferences were learned", "iteration 2: 3 kept, None lost", "1 pairs, 1 prompts", "`beta` = 0.5 (strength)"):
        assert f"- {line}\n" in card, line
    plain = model_card(version, Lineage(nodes), {}, Licence(), "x = 1")
    for line in ("mine", "iteration 2", "1 pairs of pictures of 1 prompts; 0 diverged in training", "`beta` = 0.5"):
        assert f"- {line}\n" in plain, line


def test_what_is_there_is_not_written_over_and_another_base_is_refused(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="to: .*not empty"):
        export_version(sample.registry, "production", sample.folder, weights.locate("generator"), licence=Licence())
    with pytest.raises(MissingWeights, match="--base"):
        export_version(sample.registry, "production", tmp_path / "new", weights.locate("clip"), licence=Licence())
    assert not (tmp_path / "new").exists()


def test_the_command_exports_an_alias_of_the_registry(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = sample.folder.parent
    monkeypatch.setenv("SFUMATO_REGISTRY_URL", f"sqlite:///{place}/registry.sqlite")
    monkeypatch.setenv("SFUMATO_ARTIFACTS", str(place / "artifacts"))
    line = ["export", "production", "--to", str(tmp_path / "out"), "--local", "--json"]
    report = json.loads(CliRunner().invoke(app, line, catch_exceptions=False).stdout)
    assert report["version"] == sample.made.version
    for name in ("README.md", "service.py", "lora/diffusers.safetensors", "lora/kohya.safetensors", "lineage.json"):
        assert (tmp_path / "out" / name).read_bytes() == (sample.folder / name).read_bytes(), name  # the same again


def indented(path: Path) -> list[str]:
    """The lines of a page's examples."""
    return [line.removeprefix("    ") for line in path.read_text().splitlines() if line.startswith("    ")]


def test_the_example_of_the_card_runs(sample: Sample, tmp_path: Path) -> None:
    folder = shutil.copytree(sample.folder, tmp_path / "exported")
    code = "\n".join(indented(folder / "README.md"))
    assert "load_lora_weights" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Pictures.open(folder / "picture.png") as picture:
        assert picture.size == (64, 64)


def test_bentoml_builds_it_and_the_bento_paints_the_same(sample: Sample, tmp_path: Path) -> None:
    environment = os.environ | {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "1"}
    build = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    done = subprocess.run(build, env=environment, capture_output=True, text=True, cwd=sample.folder)
    assert done.returncode == 0, done.stderr
    name, _, number = done.stdout.strip().splitlines()[-1].removeprefix("__tag__:").partition(":")
    bento = tmp_path / "bentoml" / "bentos" / name / number
    assert yaml.safe_load((bento / "bento.yaml").read_text())["labels"]["version"] == sample.made.version[:12]
    code = """if True:
        import sys
        import sfumato  # for the machine's torchvision alone: the service does not need it
        import bentoml
        service = bentoml.load(sys.argv[1])
        service.inner().generate(prompt=sys.argv[2], seed=int(sys.argv[3]), steps=int(sys.argv[4])).save(sys.argv[5])
    """
    picture = tmp_path / "picture.png"
    line = [sys.executable, "-c", code, str(bento), ASKED.prompt, str(ASKED.seed), str(ASKED.steps), str(picture)]
    done = subprocess.run(line, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Pictures.open(picture) as made:
        assert apart(np.array(made), sample.wanted) <= 1
