import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.grounding.answers import clean, parse_choice, parse_object, parse_prompt, parse_regions
from services.grounding.profiles import QWEN2_VL, VISTA
from sfumato.advice import DESCRIPTION
from sfumato.errors import AnswerRejected
from sfumato.types import Region


def entry(box: object, text: object = "a calm lake", **more: object) -> dict[str, object]:
    return {"bbox": box, DESCRIPTION: text, **more}


def read(*entries: object, profile=VISTA, width: int = 64, height: int = 64) -> tuple[Region, ...]:
    return parse_regions(json.dumps(entries), profile, width, height)


def test_a_good_answer_comes_through_unchanged_and_in_order() -> None:
    regions = read(entry([1, 2, 30, 40], "a lake"), entry([0, 0, 64, 38], "a sky"))
    assert regions == (Region("a lake", (1, 2, 30, 40)), Region("a sky", (0, 0, 64, 38)))


def test_boxes_are_cut_to_the_picture_and_scaled_to_its_pixels() -> None:
    assert read(entry([-5, 10, 100, 900]))[0].box == (0, 10, 64, 64)
    assert read(entry([16, 16, 32, 64]), width=128, height=256)[0].box == (32, 64, 64, 256)
    assert read(entry([500, 0, 1000, 250]), profile=QWEN2_VL, width=640, height=480)[0].box == (320, 0, 640, 120)


@pytest.mark.parametrize("box", [[10, 10, 10, 30], [30, 10, 10, 30], [10, 30, 30, 10], [70, 10, 80, 30], [3, 3, 5, 6]])
def test_boxes_that_frame_nothing_are_left_out(box: list[int]) -> None:
    assert read(entry(box), entry([0, 0, 64, 38], "a sky")) == (Region("a sky", (0, 0, 64, 38)),)


def test_repetitions_are_left_out() -> None:
    assert len(read(entry([1, 2, 30, 40]), entry([1, 2, 30, 41], "another"), entry([40, 40, 60, 60]))) == 1


@pytest.mark.parametrize(
    "bad",
    [
        entry([1, 2, 3]),
        entry([1, 2, 3, 4, 5]),
        entry([1, 2.5, 30, 40]),
        entry([True, 0, 30, 40]),
        entry(["1", 2, 30, 40]),
        entry([1, 2, 30, 10**12]),
        entry({"x1": 1}),
        entry([1, 2, 30, 40], 7),
        entry([1, 2, 30, 40], " \u202e\x00 "),
        entry([1, 2, 30, 40], "a" * 121),
        entry([1, 2, 30, 40], path="/etc/passwd"),
        {"bbox": [1, 2, 30, 40]},
        "a lake",
        None,
    ],
)
def test_an_entry_against_the_schema_rejects_the_whole_answer(bad: object) -> None:
    with pytest.raises(AnswerRejected):
        read(entry([0, 0, 64, 38], "a sky"), bad)


@pytest.mark.parametrize(
    "raw", ["", "{}", "I see a lake.", '[{"bbox":[1,2', "null", json.dumps([entry([1, 2, 30, 40], str(i)) for i in range(6)])]
)
def test_what_is_no_list_of_few_entries_is_rejected_with_its_words(raw: str) -> None:
    with pytest.raises(AnswerRejected) as caught:
        parse_regions(raw, VISTA, 64, 64)
    assert caught.value.raw == raw


def test_a_markdown_fence_is_taken_off() -> None:
    raw = "```json\n" + json.dumps([entry([1, 2, 30, 40])]) + "\n```"
    assert len(parse_regions(raw, VISTA, 64, 64)) == 1


def test_choices_are_read_leniently_and_nothing_else_is_a_choice() -> None:
    assert parse_choice(" Yes.", ("yes", "no")) == "yes"
    assert parse_choice("b", ("A", "B")) == "B"
    for raw in ("", "maybe", "yes and no", "A" * 10**6):
        with pytest.raises(AnswerRejected):
            parse_choice(raw, ("yes", "no"))


@given(st.text())
def test_cleaned_text_is_one_printable_line_and_stays_as_it_is(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.isprintable() and clean(cleaned) == cleaned and "\n" not in cleaned


def test_a_refined_prompt_has_words_and_an_end() -> None:
    assert parse_prompt(" a lake \n at night\x00 ", 100) == "a lake at night"
    for raw in ("", "\x00", "a" * 101, "a<|im_end|>"):
        with pytest.raises(AnswerRejected):
            parse_prompt(raw, 100)


def test_an_object_has_its_keys_and_texts_and_nothing_else() -> None:
    assert parse_object('{"reason": " it\\nglows ", "choice": "A"}', ("reason", "choice"), 20) == {"reason": "it glows", "choice": "A"}
    for raw in ('{"choice": "A"}', '{"reason": "x", "choice": "A", "x": 1}', '{"reason": 1, "choice": "A"}', '["reason"]', '{"reason": "'):
        with pytest.raises(AnswerRejected) as caught:
            parse_object(raw, ("reason", "choice"), 20)
        assert caught.value.raw == raw
    with pytest.raises(AnswerRejected, match="'reason' is not a text of 1 to 20"):
        parse_object(json.dumps({"reason": "a" * 21, "choice": "A"}), ("reason", "choice"), 20)
