"""The scoring engine: real, barely trained scorers for its rules, the shipped ones for what they say."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from services.scoring.engine import ScoringEngine
from services.scoring.loading import VISTA, load_scorers
from sfumato.cli.score import score as score_command
from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights
from sfumato.runtime.images import write_png
from sfumato.scoring.preference import win_probability
from sfumato.types import Image
from sfumato.vista import weights
from sfumato.vista.evaluation.scorers import aesthetic_spearman, clip_retrieval, preference_accuracy
from sfumato.vista.phrases import caption
from sfumato.vista.training import clip, parts, scorers
from sfumato.vista.training.loop import fit
from sfumato.vista.world import render, sample_scene, with_finish


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sealed weights of all four scorers after two steps of training."""
    folder, root = tmp_path_factory.mktemp("training"), tmp_path_factory.mktemp("weights")
    fit(clip.ClipTask(groups=4, batch=2), folder, steps=2)
    for part in ("aesthetic", "pickscore", "mps"):
        fit(scorers.build(part, folder, groups=4), folder, steps=1)
    parts.install(folder, VISTA, root)
    return root


@pytest.fixture(scope="module")
def engine(root: Path) -> ScoringEngine:
    return ScoringEngine(load_scorers(root=root), batch=3)


@pytest.fixture(scope="module")
def shipped() -> ScoringEngine:
    return ScoringEngine(load_scorers())


def some(count: int) -> tuple[list[Image], list[str]]:
    rng = random.Random(11)
    scenes = [sample_scene(rng) for _ in range(count)]
    return [render(scene) for scene in scenes], [caption(scene, rng) for scene in scenes]


def test_every_picture_gets_every_metric_in_its_range(engine: ScoringEngine) -> None:
    scores = engine.score(*some(4))
    assert [list(row) for row in scores] == [list(VISTA)] * 4
    for metric in engine.metrics:
        assert metric.higher_is_better and metric.version.startswith("vista-")
        assert all(math.isfinite(row[metric.name]) for row in scores)
        if metric.name != "aesthetic":
            assert all(metric.low <= row[metric.name] <= metric.high for row in scores)


def test_scores_do_not_depend_on_the_rest_of_the_batch(engine: ScoringEngine) -> None:
    images, prompts = some(5)
    together = engine.score(images, prompts)
    assert together == engine.score(images, prompts)
    for image, prompt, row in zip(images, prompts, together, strict=True):
        alone = engine.score([image], [prompt])[0]
        assert alone == pytest.approx(row, abs=1e-3)


def test_clip_is_the_cosine_of_the_library_times_a_hundred(engine: ScoringEngine, root: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    images, prompts = some(3)
    model = CLIPModel.from_pretrained(root / "clip", dtype=torch.float32)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double().div(127.5).sub(1).float()
    words = AutoTokenizer.from_pretrained(root / "clip")(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=pixels, input_ids=words["input_ids"], attention_mask=words["attention_mask"])
    expected = 100 * (out.image_embeds.double() * out.text_embeds.double()).sum(1)
    assert [row["clip"] for row in engine.score(images, prompts, ["clip"])] == pytest.approx(expected.tolist(), abs=1e-3)


def test_metrics_are_chosen_by_name(engine: ScoringEngine) -> None:
    images, prompts = some(1)
    assert list(engine.score(images, prompts, ["mps", "clip"])[0]) == ["mps", "clip"]
    for metrics in (["beauty"], []):
        with pytest.raises(InvalidInput, match="Known metrics: aesthetic, clip, pickscore, mps"):
            engine.score(images, prompts, metrics)
    with pytest.raises(InvalidInput, match="beauty"):
        load_scorers(["beauty"])
    assert engine.score([], []) == []


@pytest.mark.parametrize("prompt", ["", "  \n", "a moon " * 400])
def test_unusable_prompts_are_refused(engine: ScoringEngine, prompt: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        engine.score(some(1)[0], [prompt])
    assert caught.value.field == "prompt"


def test_unusable_pictures_are_refused(engine: ScoringEngine) -> None:
    for bad in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(InvalidInput, match="no picture"):
            engine.score([bad], ["a moon"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="1 for 2 images"):
        engine.score(some(2)[0], ["a moon"])


def test_unknown_words_and_long_prompts_are_scored_all_the_same(engine: ScoringEngine) -> None:
    row = engine.score(some(1)[0], ["zyx 123 ... " + "a red house and " * 60])[0]
    assert all(math.isfinite(value) for value in row.values())


def test_missing_and_damaged_weights_are_told_apart(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="aesthetic"):
        load_scorers(root=tmp_path)
    shutil.copytree(root, tmp_path / "w")
    damaged = tmp_path / "w" / "mps" / "attention.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(BrokenWeights, match="damaged"):
        load_scorers(["mps"], root=tmp_path / "w")
    damaged.write_bytes(b"sealed, but no weights")
    weights.seal(damaged.parent)
    with pytest.raises(BrokenWeights, match="cannot be read"):
        load_scorers(["mps"], root=tmp_path / "w")
    assert len(load_scorers(["pickscore"], root=tmp_path / "w")) == 1


def test_a_version_names_the_weights(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "w")
    (tmp_path / "w" / "clip" / "note.txt").write_text("other")
    weights.seal(tmp_path / "w" / "clip")
    before, after = ({s.metric.name: s.metric.version for s in load_scorers(root=r)} for r in (root, tmp_path / "w"))
    assert {name for name in VISTA if before[name] != after[name]} == {"clip", "aesthetic"}


def test_the_shipped_scorers_reach_their_figures(shipped: ScoringEngine) -> None:
    def by(name: str):
        return lambda images, prompts: [row[name] for row in shipped.score(images, prompts, [name])]

    assert clip_retrieval(by("clip"), rounds=1) >= 0.9
    assert aesthetic_spearman(by("aesthetic")) >= 0.95
    assert preference_accuracy(by("pickscore"), count=128) >= 0.93
    assert preference_accuracy(by("mps"), count=128) >= 0.93


def test_the_shipped_scorers_like_what_a_person_would(shipped: ScoringEngine) -> None:
    scene = sample_scene(random.Random(3), kinds=("house", "mountains"), time="dusk", count=2)
    plain, fine = (render(with_finish(scene, finish)) for finish in (False, True))
    other = render(sample_scene(random.Random(4), kinds=("boat",), time="night"))
    prompt = caption(scene, random.Random(0))
    rows = shipped.score([plain, fine, other], [prompt] * 3)
    assert rows[1]["aesthetic"] > rows[0]["aesthetic"] + 3
    assert min(rows[0]["clip"], rows[1]["clip"]) > rows[2]["clip"] + 5
    for name in ("pickscore", "mps"):
        assert win_probability(rows[1][name], rows[0][name]) > 0.9
        assert win_probability(rows[0][name], rows[2][name]) > 0.5


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(score_command)
    images, prompts = some(2)
    paths = [str(tmp_path / f"{index}.png") for index in range(2)]
    for image, path in zip(images, paths, strict=True):
        write_png(image, path)
    told = CliRunner().invoke(app, [*paths, "--prompt", prompts[0], "--json", "--metrics", "clip,pickscore"])
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    assert [entry["image"] for entry in report["scores"]] == paths
    assert set(report["scores"][0]) == {"image", "clip", "pickscore"}
    scores = [entry["pickscore"] for entry in report["scores"]]
    assert report["first_preferred"]["pickscore"] == pytest.approx(win_probability(*scores))
    table = CliRunner().invoke(app, [paths[0], "--prompt", prompts[0]])
    assert table.exit_code == 0 and "aesthetic" in table.stdout
    missing = CliRunner().invoke(app, [str(tmp_path / "none.png"), "--prompt", "a moon"])
    assert isinstance(missing.exception, InvalidInput)
    empty = CliRunner().invoke(app, [paths[0], "--prompt", " "])
    assert isinstance(empty.exception, InvalidInput) and empty.exception.field == "prompt"
