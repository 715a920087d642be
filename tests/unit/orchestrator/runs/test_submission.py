"""A spec as a client submits it: all that is wrong with it is said at once, by field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.runs.submission import submission
from sfumato.errors import Faults
from sfumato.runtime.settings import Settings

INPUTS = {"train": ["a house", "a tree"], "heldout": ["a lake"]}


def _text(**sections: Any) -> str:
    spec = {"name": "x", "prompts": {"count": 2, "seed": 0}, "evaluate": {"count": 1, "seed": 9}, "ground": {"backend": "transformers"}}
    return json.dumps(spec | sections)


def _faults(text: str, inputs: dict[str, list[str]] = INPUTS) -> dict[str, str]:
    with pytest.raises(Faults) as error:
        submission(text, inputs, Settings())
    return dict(error.value.faults)


def test_the_names_of_the_files_and_the_prompts_are_on_record() -> None:
    found = submission(_text(), INPUTS | {"train": [" a house ", "a tree", "one too many"]}, Settings())
    assert found.id.startswith("x-")
    assert found.record.inputs == {"train": ("a house", "a tree"), "tune": (), "heldout": ("a lake",), "ceiling": ()}
    assert (found.record.spec["prompts"]["file"], found.record.spec["evaluate"]["file"]) == ("train.txt", "heldout.txt")
    assert set(found.record.models) == {"generator", "understanding", "scorers", "judge"}


@pytest.mark.parametrize("more", [{}, {"batch": 0}], ids=["valid otherwise", "invalid otherwise"])
def test_a_metric_without_weights_is_a_fault_of_its_own(more: dict[str, Any]) -> None:
    score = {"metrics": ["clip", "aesthetic", "nudenet", "hpsv2"]}
    faults = _faults(_text(score=score, **more))
    assert set(faults) == {"spec.score.models.hpsv2", *(f"spec.{field}" for field in more)}
    assert "no weights of its own" in faults["spec.score.models.hpsv2"]
    # One that is named is looked for, and is not on this machine.
    faults = _faults(_text(score=score | {"models": {"hpsv2": "unknown/model"}}, **more))
    assert "is not on the orchestrator's machine" in faults["spec.score.models.hpsv2"]


@pytest.mark.parametrize("score", [[], "clip", {"metrics": "hpsv2"}, {"metrics": [1, ["hpsv2"], "beauty"]}, {"models": ["hpsv2"]}])
def test_a_section_of_another_shape_is_refused_by_its_own_field(score: Any) -> None:
    assert all(field.startswith("spec.score") for field in _faults(_text(score=score)))


def test_what_is_wrong_with_the_prompts_is_said_beside_what_is_wrong_with_the_spec() -> None:
    inputs = {"train": ["a house", "a lake"], "heldout": ["a lake"], "colours": ["blue"], "tune": ["a boat"]}
    faults = _faults(_text(batch=0, prompts={"count": 2, "seed": 0, "file": "../train.txt"}), inputs)
    assert set(faults) == {"spec.batch", "spec.prompts.file", "inputs.heldout", "inputs.colours", "inputs.tune"}
    assert "1 of its prompts are in train as well" in faults["inputs.heldout"]


def test_an_unknown_method_is_refused_by_its_name() -> None:
    assert set(_faults(_text(recipe="painting"))) == {"spec.recipe"}
