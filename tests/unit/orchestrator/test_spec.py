"""Specs: the shipped ones load, faults are named."""

from pathlib import Path

import pytest

from orchestrator.recipes.artaug import KEPT, RULES, Sample, verdict
from orchestrator.spec import load_spec, read_prompts, run_id
from sfumato.errors import InvalidInput

CONFIGS = Path(__file__).parents[3] / "configs"
LEAST = "name: x\nprompts: {file: p.txt, count: 1, seed: 0}\nevaluate: {file: p.txt, count: 1, seed: 9}\n"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_specs_load_and_hold_nothing_out_twice(path: Path) -> None:
    spec = load_spec(path)
    assert not set(read_prompts(spec.prompts, "prompts")) & set(read_prompts(spec.evaluate, "evaluate"))


@pytest.mark.parametrize(
    ("text", "words"), [(LEAST + "alhpa: 2\n", "alhpa"), (LEAST + "fuse: {alpha: -1}\n", "fuse.alpha"), ("a: [", "not YAML"), ("", "spec")]
)
def test_faults_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=words):
        load_spec(tmp_path / "spec.yaml")


def test_the_same_run_has_the_same_id(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(LEAST)
    spec = load_spec(tmp_path / "spec.yaml")
    assert run_id(spec, ("a",), ("b",), {"g": "1"}) == run_id(spec, ("a",), ("b",), {"g": "1"})
    assert run_id(spec, ("a",), ("b",), {"g": "1"}) != run_id(spec, ("a",), ("b",), {"g": "2"})


@pytest.mark.parametrize(
    ("aesthetic", "clip", "rule"), [(6.0, 20.0, KEPT), (5.0, 21.0, RULES[1]), (6.0, 19.9, RULES[2]), (float("nan"), 21.0, RULES[1])]
)
def test_the_filter_is_the_papers(aesthetic: float, clip: float, rule: str) -> None:
    sample = Sample("p", 0, scores_before={"aesthetic": 5.0, "clip": 20.0}, scores_after={"aesthetic": aesthetic, "clip": clip})
    assert verdict(sample) == rule


def test_without_advice_there_is_no_pair() -> None:
    assert verdict(Sample("p", 0)) == RULES[0]
