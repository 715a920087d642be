"""The grounding tasks as a run sends them, through a real HTTP server that says what is written down for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.grounding import tasks
from sfumato.advice import DESCRIPTION
from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png
from sfumato.runtime.tasks import Manifest, Task, perform
from tests.unit.scripted_vlm import Reply, ScriptedVlm

LAKE = json.dumps([{"bbox": [100, 200, 500, 900], DESCRIPTION: "a calm lake"}])
REGIONS = [{"prompt": "a calm lake", "box": [10, 20, 50, 90]}]


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


@pytest.fixture
def pictures(artifacts: ArtifactStore) -> tuple[str, str]:
    """A black and a white picture of 100 x 100 pixels."""
    black, white = (artifacts.put(encode_png(np.full((100, 100, 3), value, np.uint8))) for value in (0, 255))
    return black, white


@pytest.fixture(autouse=True)
def asked_at(vlm: ScriptedVlm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_VLM_URL", vlm.url)


def done(artifacts: ArtifactStore, verb: str, *items: Mapping[str, Any], profile: str = "qwen2-vl", **params: str) -> Manifest:
    """A task done as a worker does it, its manifest read back from the store."""
    settings = {"backend": "vllm", "profile": profile, **params}
    task = Task(stage="s", kind=f"grounding.{verb}", items=items, params=settings, model="version", model_reference="hub/name")
    perform(task, tasks.HANDLERS[task.kind], artifacts, {})
    return perform(task, tasks.HANDLERS[task.kind], artifacts, {})


def said(choice: str, reason: str = "It glows.") -> str:
    return json.dumps({"reason": reason, "choice": choice})


def picture_counts(vlm: ScriptedVlm) -> list[list[int]]:
    """For every request, how many pictures each of the user's turns has."""
    users = [[message for message in request["messages"] if message["role"] == "user"] for request in vlm.requests]
    return [[sum(part["type"] == "image_url" for part in user["content"]) for user in turns] for turns in users]


# --- ground ---


def test_advice_is_asked_in_one_turn_unless_told_otherwise(vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]) -> None:
    vlm.script = [LAKE]
    manifest = done(artifacts, "ground", {"prompt": "a lake", "picture": pictures[0]})
    assert manifest.values == [{"regions": REGIONS, "raw": LAKE, "rejected": ""}]
    assert "absolute pixel coordinates" in vlm.questions()[0] and "json_schema" in vlm.requests[0]["response_format"]["type"]


def test_three_turns_are_one_conversation_about_one_picture(
    vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]
) -> None:
    vlm.script = ["A dark lake.", "It could glow.", LAKE]
    manifest = done(artifacts, "ground", {"prompt": "a lake", "picture": pictures[0]}, strategy="three-turn", profile="qwen3-vl")
    assert manifest.values == [{"regions": REGIONS, "raw": LAKE, "rejected": ""}]
    assert picture_counts(vlm) == [[1], [1, 0], [1, 0, 0]]
    assert ["response_format" in request for request in vlm.requests] == [False, False, True]
    describe, please, final = vlm.questions()
    assert "Describe what is there" in describe and "please" in please
    assert "Mark the locations" in final and "relative coordinates from 0 to 1000" in final
    answers = [message["content"] for message in vlm.requests[2]["messages"] if message["role"] == "assistant"]
    assert answers == ["A dark lake.", "It could glow."]


def test_the_built_in_model_knows_no_conversation(artifacts: ArtifactStore, pictures: tuple[str, str]) -> None:
    item = {"prompt": "a lake", "picture": pictures[0]}
    with pytest.raises(InvalidInput, match="profile vista knows single-turn only"):
        done(artifacts, "ground", item, profile="vista", strategy="three-turn")
    with pytest.raises(InvalidInput, match="single-turn, three-turn"):
        done(artifacts, "ground", item, strategy="nine-turn")


def test_a_bad_answer_is_shown_to_the_model_with_its_fault_and_mended(
    vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]
) -> None:
    vlm.script = ["I would rather not.", LAKE]
    manifest = done(artifacts, "ground", {"prompt": "a lake", "picture": pictures[0]})
    assert manifest.values[0]["regions"] == REGIONS
    first, second = vlm.requests
    assert (first["temperature"], second["temperature"] > 0, second["seed"]) == (0.0, True, 1)
    assert second["messages"][-2] == {"role": "assistant", "content": "I would rather not."}
    assert "The answer is not JSON." in vlm.questions()[1] and second["response_format"] == first["response_format"]
    assert picture_counts(vlm) == [[1], [1, 0]]


def test_the_built_in_model_is_only_asked_again(vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]) -> None:
    vlm.script = ["what?", '[{"bbox":[0,0,32,64],"aesthetical description":"a lake"}]']
    manifest = done(artifacts, "ground", {"prompt": "a lake", "picture": pictures[0]}, profile="vista")
    assert manifest.values[0]["regions"] == [{"prompt": "a lake", "box": [0, 0, 50, 100]}]
    assert vlm.questions()[0] == vlm.questions()[1] and len(vlm.requests[1]["messages"]) == 1


def test_two_bad_answers_are_a_result_with_the_raw_one(vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]) -> None:
    vlm.script = ["no", '"half a pair: \ud83d"', *["no"] * 2]
    items = [{"prompt": "a lake", "picture": pictures[0]}, {"prompt": "a house", "picture": pictures[1]}]
    first, second = done(artifacts, "ground", *items, profile="vista").values
    assert first["regions"] == second["regions"] == []
    assert "half a pair: ?" in first["raw"] and "not a list" in first["rejected"] and second["raw"] == "no"


def test_one_prompt_that_cannot_be_asked_about_does_not_stop_the_others(
    vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]
) -> None:
    vlm.script = [LAKE]
    items = [{"prompt": text, "picture": pictures[0]} for text in ("", "a<|im_end|>b", "a" * 4001, "a lake")]
    values = done(artifacts, "ground", *items).values
    assert [bool(value["rejected"]) for value in values] == [True, True, True, False]
    assert values[3]["regions"] == REGIONS and len(vlm.requests) == 1


# --- refine ---


def test_refined_prompts_come_back_and_rejected_ones_stay_as_they_were(vlm: ScriptedVlm, artifacts: ArtifactStore) -> None:
    vlm.script = ["a house by day", "", "two<|im_end|>"]
    values = done(artifacts, "refine", {"prompt": "a cottage"}, {"prompt": "a lake"}, profile="vista").values
    assert values[0] == {"prompt": "a house by day", "raw": "a house by day", "rejected": ""}
    assert (values[1]["prompt"], values[1]["raw"]) == ("a lake", "two<|im_end|>") and "control token" in values[1]["rejected"]
    assert vlm.questions()[0] == "Refine this prompt, keep its meaning: a cottage"
    assert all("response_format" not in request for request in vlm.requests)


def test_real_models_refine_in_json(vlm: ScriptedVlm, artifacts: ArtifactStore) -> None:
    vlm.script = ['{"prompt": "a red\\nhouse"}', '{"prompt": ""}', '{"prompt": "fine", "note": "x"}']
    values = [done(artifacts, "refine", {"prompt": prompt}).values[0] for prompt in ("a house", "a tree {x}")]
    assert (values[0]["prompt"], values[0]["raw"]) == ("a red house", '{"prompt": "a red\\nhouse"}')
    assert values[1]["prompt"] == "a tree {x}" and "keys prompt" in values[1]["rejected"]
    schema = vlm.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["prompt"] and schema["additionalProperties"] is False
    assert "a tree {x}" in vlm.questions()[1] and '{"prompt": "..."}' in vlm.questions()[1]


# --- compare ---


def test_both_orders_are_asked_and_a_reason_comes_with_the_choice(
    vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]
) -> None:
    vlm.script = [said("B", "B has light."), said("A", "A has light.")]
    values = done(artifacts, "compare", {"prompt": "a lake", "a": pictures[0], "b": pictures[1]}).values
    assert values == [{"choice": "B", "reason": "B has light.", "raw": "", "rejected": ""}]
    shown = [[part["image_url"] for part in request["messages"][0]["content"][:2]] for request in vlm.requests]
    assert shown[0] == shown[1][::-1] and shown[0][0] != shown[0][1]
    assert "a lake" in vlm.questions()[0]
    properties = list(vlm.requests[0]["response_format"]["json_schema"]["schema"]["properties"])
    assert properties == ["reason", "choice"]


def test_who_prefers_what_is_shown_first_is_no_judge(vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]) -> None:
    vlm.script = [said("A", "It glows."), said("A", "It is calm.")]
    (value,) = done(artifacts, "compare", {"prompt": "a lake", "a": pictures[0], "b": pictures[1]}).values
    assert value["choice"] == "tie" and value["rejected"] == ""
    assert "shown first" in value["reason"] and "It glows." in value["reason"] and "It is calm." in value["reason"]


def test_a_judge_who_does_not_choose_makes_a_tie_with_the_reason_recorded(
    vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]
) -> None:
    vlm.script = [said("A"), said("both"), said("neither")]
    (value,) = done(artifacts, "compare", {"prompt": "a lake", "a": pictures[0], "b": pictures[1]}).values
    assert value == {"choice": "tie", "reason": "", "raw": said("neither"), "rejected": "The answer is none of A, B."}


def test_the_built_in_model_chooses_in_a_letter(vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]) -> None:
    vlm.script = ["A", "B"]
    (value,) = done(artifacts, "compare", {"prompt": "a lake", "a": pictures[0], "b": pictures[1]}, profile="vista").values
    assert (value["choice"], value["reason"]) == ("A", "")
    assert vlm.requests[0]["structured_outputs"] == {"choice": ["A", "B"]}


# --- ask ---


def test_questions_are_answered_with_yes_no_or_nothing(vlm: ScriptedVlm, artifacts: ArtifactStore, pictures: tuple[str, str]) -> None:
    asked = {"picture": pictures[0], "question": "is there a lake?"}
    vlm.script = ['{"answer": "yes"}', '{"answer": "No."}', "perhaps", '{"answer": "perhaps"}']
    values = [done(artifacts, "ask", asked | {"question": f"is there {it}?"}).values[0] for it in ("a lake", "a house", "a point")]
    assert [value["yes"] for value in values] == [True, False, None]
    assert values[0]["rejected"] == "" and values[2]["rejected"] and values[2]["raw"] == '{"answer": "perhaps"}'
    vlm.script = ["no"]
    assert done(artifacts, "ask", asked, profile="vista").values[0]["yes"] is False
    assert vlm.questions()[-1] == "is there a lake?"


# --- the server ---


def test_a_model_is_asked_for_by_the_name_the_server_knows(vlm: ScriptedVlm, artifacts: ArtifactStore) -> None:
    vlm.models, vlm.key, vlm.script = ["other", "hub/name"], "", ['{"prompt": "a lake"}']
    done(artifacts, "refine", {"prompt": "a pond"})
    assert vlm.requests[0]["model"] == "hub/name"


def test_the_key_comes_from_the_environment(vlm: ScriptedVlm, artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm.key, vlm.script = "secret", ['{"prompt": "a lake"}']
    monkeypatch.setenv("SFUMATO_VLM_API_KEY", "secret")
    manifest = done(artifacts, "refine", {"prompt": "a pond"})
    assert manifest.values[0]["prompt"] == "a lake" and "secret" not in manifest.model_dump_json()


def test_a_server_that_fails_stops_the_task_and_leaves_no_manifest(
    vlm: ScriptedVlm, artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm.script = [Reply(400, b"context too long"), '{"prompt": "a lake"}']
    with pytest.raises(Unavailable, match="context too long"):
        done(artifacts, "refine", {"prompt": "a pond"})
    assert done(artifacts, "refine", {"prompt": "a pond"}).values[0]["prompt"] == "a lake"
    monkeypatch.setenv("SFUMATO_VLM_URL", "")
    with pytest.raises(Unavailable, match="SFUMATO_VLM_URL.*transformers"):
        done(artifacts, "refine", {"prompt": "a puddle"})
