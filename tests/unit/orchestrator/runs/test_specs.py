"""Specs: the shipped ones load, faults are named, a run's id holds all its result depends on."""

from pathlib import Path

import pytest
from orchestrator.spec import load_spec, read_prompt_sets, run_id

from sfumato.errors import InvalidInput

CONFIGS = Path(__file__).parents[3] / "configs"
LEAST = "name: x\nprompts: {file: p.txt, count: 1, seed: 0}\nevaluate: {file: held.txt, count: 1, seed: 9}\n"


def _spec(folder: Path, text: str) -> Path:
    (folder / "spec.yaml").write_text(text)
    (folder / "p.txt").write_text("a house\na tree\n")
    (folder / "held.txt").write_text("# not a prompt\n\na lake\n")
    return folder / "spec.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_specs_load(path: Path) -> None:
    load_spec(path)


def test_the_demos_prompts_are_there_and_none_is_in_two_sets() -> None:
    sets = read_prompt_sets(load_spec(CONFIGS / "artaug-vista.yaml"))
    assert len(sets.ceiling) == len(sets.heldout)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LEAST + "alhpa: 2\n", "alhpa"),
        (LEAST + "fuse: {alpha: -1}\n", "fuse.alpha"),
        (LEAST + "fuse: {alpha: [1, 2]}\n", "tune"),
        (LEAST + "compare: true\n", "tune"),
        (LEAST + "compare: together\n", "compare"),
        (LEAST + "compare: joint\ntrain: {rank: auto}\ntune: {file: t.txt, count: 1, seed: 1}\n", "train.rank"),
        (LEAST + "joint: {pictures: 6, together: 4}\n", "joint: .*divide"),
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
    assert read_prompt_sets(load_spec(path)).heldout == ("a lake",)
    (tmp_path / "held.txt").write_text("a house\n")
    with pytest.raises(InvalidInput, match="evaluate: 1 of its prompts are used elsewhere .* 'a house'"):
        read_prompt_sets(load_spec(path))
    (tmp_path / "held.txt").write_text("")
    with pytest.raises(InvalidInput, match="evaluate.count: .* has 0 prompts"):
        read_prompt_sets(load_spec(path))
    (tmp_path / "held.txt").write_text("a lake\n")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="prompts.file: .* not UTF-8"):
        read_prompt_sets(load_spec(path))
    (tmp_path / "p.txt").unlink()
    with pytest.raises(InvalidInput, match="prompts.file: there is no file"):
        read_prompt_sets(load_spec(path))


def test_one_alpha_may_be_written_as_a_number(tmp_path: Path) -> None:
    assert load_spec(_spec(tmp_path, LEAST + "fuse: {alpha: 1.5}\n")).fuse.alpha == (1.5,)


def test_the_same_run_has_the_same_id_wherever_its_files_lie(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    specs = [load_spec(_spec(folder, LEAST)) for folder in (tmp_path, tmp_path / "other")]
    sets = read_prompt_sets(specs[0])
    assert run_id(specs[0], sets, {"g": "1"}) == run_id(specs[1], sets, {"g": "1"})
    assert run_id(specs[0], sets, {"g": "1"}) != run_id(specs[0], sets, {"g": "2"})
