"""Specs: the shipped ones load, faults are named, a run's id holds all its result depends on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.recipes.artaug import RECIPE
from orchestrator.recipes.artaug.spec import ArtAugSpec
from orchestrator.recipes.models import Model
from orchestrator.runs.specs import load_spec, recipe_of, with_prompts
from orchestrator.runs.submission import check_prompts, run_id
from sfumato.errors import InvalidInput

CONFIGS = Path(__file__).parents[4] / "configs"
LEAST = "name: x\nprompts: {file: p.txt, count: 1, seed: 0}\nevaluate: {file: held.txt, count: 1, seed: 9}\n"


def _inputs(path: Path) -> Mapping[str, Sequence[str]]:
    """The sets of prompts of a spec's file, checked."""
    content, inputs = with_prompts(path, anchor=True)
    check_prompts(content, inputs, recipe_of(content))
    return inputs


def _spec(folder: Path, text: str) -> Path:
    (folder / "spec.yaml").write_text(text)
    (folder / "p.txt").write_text("a house\na tree\n")
    (folder / "held.txt").write_text("# not a prompt\n\na lake\n")
    return folder / "spec.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_specs_load(path: Path) -> None:
    load_spec(path)


def test_the_demos_prompts_are_there_and_none_is_in_two_sets() -> None:
    inputs = _inputs(CONFIGS / "artaug-vista.yaml")
    assert len(inputs["ceiling"]) == len(inputs["heldout"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LEAST + "alhpa: 2\n", "alhpa"),
        (LEAST + "fuse: {alpha: -1}\n", "fuse.alpha"),
        (LEAST + "fuse: {alpha: [1, 2]}\n", "tune"),
        (LEAST + "compare: true\n", "tune"),
        (LEAST + "compare: together\n", "compare"),
        (LEAST + "compare: joint\ntrain: {rank: auto}\ntune: {file: t.txt, count: 1, seed: 1}\n", "train.rank"),
        (LEAST + "joint: {pictures: 6, together: 4}\n", "spec.joint.together: .*divide"),
        (LEAST + "score: {metrics: [clip]}\n", "aesthetic are needed"),
        (LEAST + "score: {metrics: [clip, aesthetic, beauty]}\n", "score.metrics"),
        (LEAST + "score: {metrics: [clip, aesthetic, clip]}\n", "named twice"),
        (LEAST + "train: {rank: many}\n", "train.rank"),
        (LEAST + "filter: {review: nobody}\n", "filter.review"),
        ("a: [", "not YAML"),
        ("", "spec"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        load_spec(_spec(tmp_path, text))


def test_a_missing_spec_and_missing_or_few_or_shared_prompts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no file"):
        load_spec(tmp_path / "nowhere.yaml")
    path = _spec(tmp_path, LEAST)
    assert _inputs(path)["heldout"] == ("a lake",)
    (tmp_path / "held.txt").write_text("a house\n")
    with pytest.raises(InvalidInput, match="inputs.heldout: 1 of its prompts are in train as well, such as 'a house'"):
        _inputs(path)
    (tmp_path / "held.txt").write_text("")
    with pytest.raises(InvalidInput, match="inputs.heldout: 0 prompts were given, and evaluate.count of the spec asks for 1"):
        _inputs(path)
    (tmp_path / "held.txt").write_text("a lake\n")
    (tmp_path / "p.txt").write_bytes(b"\xff\xff")
    with pytest.raises(InvalidInput, match="prompts.file: .* not UTF-8"):
        _inputs(path)
    (tmp_path / "p.txt").unlink()
    with pytest.raises(InvalidInput, match="prompts.file: there is no file"):
        _inputs(path)


def test_one_alpha_may_be_written_as_a_number(tmp_path: Path) -> None:
    _, spec = load_spec(_spec(tmp_path, LEAST + "fuse: {alpha: 1.5}\n"))
    assert isinstance(spec, ArtAugSpec) and spec.fuse.alpha == (1.5,)


def test_the_same_run_has_the_same_id_wherever_its_files_lie(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    specs = [load_spec(_spec(folder, LEAST))[1] for folder in (tmp_path, tmp_path / "other")]
    inputs = _inputs(tmp_path / "spec.yaml")
    one, another = {"g": Model("1", "")}, {"g": Model("2", "")}
    assert run_id(RECIPE, specs[0], inputs, one) == run_id(RECIPE, specs[1], inputs, one)
    assert run_id(RECIPE, specs[0], inputs, one) != run_id(RECIPE, specs[0], inputs, another)
