"""What each family of models is shown and asked, and how its coordinates are read."""

from __future__ import annotations

import json
import random

import pytest
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from services.grounding import questions
from services.grounding.answers import KEPT_RAW, parse_regions
from services.grounding.profiles import PROFILES, QWEN2_VL, QWEN3_VL, QWEN25_VL, VISTA, Form, Strategy, profile_named
from sfumato.advice import DESCRIPTION, instruction
from sfumato.errors import InvalidInput

REAL = (QWEN2_VL, QWEN25_VL, QWEN3_VL)


def boxed(profile, box: list[int], width: int, height: int) -> tuple[int, ...]:
    (region,) = parse_regions(json.dumps([{"bbox": box, DESCRIPTION: "a lake"}]), profile, width, height)
    return region.box


def test_one_box_in_every_convention() -> None:
    # The right half of a picture twice as large as the models are shown it.
    width, height = 2240, 1120
    shown = QWEN25_VL.shown_size(width, height)
    assert boxed(QWEN25_VL, [shown[0] // 2, 0, shown[0], shown[1]], width, height) == (1120, 0, 2240, 1120)
    for profile in (QWEN2_VL, QWEN3_VL):
        assert boxed(profile, [500, 0, 1000, 1000], width, height) == (1120, 0, 2240, 1120)
    assert boxed(VISTA, [32, 0, 64, 64], width, height) == (1120, 0, 2240, 1120)


@pytest.mark.parametrize("profile", REAL, ids=lambda profile: profile.name)
def test_the_models_processor_leaves_the_shown_size_alone(profile) -> None:
    rng = random.Random(0)
    sizes = [(8, 8), (8192, 8), (8, 8192), (8192, 8192), (1024, 1024), (64, 64)]
    sizes += [(rng.randint(8, 8192), rng.randint(8, 8192)) for _ in range(300)]
    least, most = profile.pixels
    for size in sizes:
        width, height = profile.shown_size(*size)
        assert least <= width * height <= most
        assert smart_resize(height, width, factor=profile.multiple, min_pixels=least, max_pixels=most) == (height, width)


def test_the_built_in_model_sees_its_one_size() -> None:
    assert VISTA.shown_size(1000, 30) == (64, 64) and VISTA.pixels == (4096, 4096)


def test_schemas_bound_coordinates_by_the_convention() -> None:
    def largest(profile) -> int:
        return profile.answer_schema(640, 480)["items"]["properties"]["bbox"]["items"]["maximum"]

    assert (largest(VISTA), largest(QWEN2_VL), largest(QWEN3_VL), largest(QWEN25_VL)) == (64, 1000, 1000, 616)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_real_models_are_asked_for_json_with_a_schema_and_the_built_in_one_in_its_own_words(name: str) -> None:
    profile = PROFILES[name]
    asked = (
        questions.refinement(profile, "a {braced} lake"),
        questions.preference(profile, "a {braced} lake"),
        questions.yes_or_no(profile, "is there a {braced} lake?"),
    )
    if profile.form is Form.bare:
        assert all(question.schema is None for question in asked)
        assert [question.choices for question in asked] == [None, ("A", "B"), ("yes", "no")]
        return
    assert [list(question.schema["properties"]) for question in asked if question.schema] == [["prompt"], ["reason", "choice"], ["answer"]]
    assert all("{braced}" in question.text and "JSON object: {" in question.text and question.choices is None for question in asked)


def test_the_papers_question_is_word_for_word_except_for_the_convention() -> None:
    for profile in (VISTA, QWEN2_VL, QWEN25_VL):
        assert questions.advice(profile, Strategy.single_turn, "a lake", 64, 64).text == instruction("a lake")
    text = questions.advice(QWEN3_VL, Strategy.single_turn, "a lake", 64, 64).text
    assert "absolute" not in text
    assert text.replace("relative coordinates from 0 to 1000", "absolute pixel coordinates") == instruction("a lake")


def test_a_context_holds_the_longest_conversation_at_a_token_a_character() -> None:
    for profile in REAL:
        longest = questions.advice(profile, Strategy.three_turn, "x" * profile.max_prompt, 1024, 1024)
        words = len("".join((*longest.before, longest.text, questions.REPAIR))) + KEPT_RAW
        picture = profile.max_pixels // profile.multiple**2
        assert picture + words + 2 * questions.FREE + profile.answer_tokens < profile.context


def test_unknown_profiles_and_strategies_are_named_among_the_known() -> None:
    with pytest.raises(InvalidInput, match="vista, qwen2-vl, qwen2.5-vl, qwen3-vl"):
        profile_named("gpt")
    with pytest.raises(InvalidInput, match="single-turn, three-turn"):
        QWEN2_VL.strategy("two-turn")
    with pytest.raises(InvalidInput, match="profile vista knows single-turn only"):
        VISTA.strategy("three-turn")
    assert [profile.strategy("three-turn") for profile in REAL] == [Strategy.three_turn] * 3
