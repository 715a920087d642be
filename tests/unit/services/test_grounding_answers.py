import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.grounding.answers import KEPT_RAW, clean, overlap, parse_choice, parse_prompt, parse_regions
from services.grounding.profiles import PROFILES, QWEN2_VL, VISTA
from sfumato.advice import DESCRIPTION
from sfumato.errors import AnswerRejected
from sfumato.types import Region

NUMBERS = st.integers(-10, 80) | st.integers() | st.floats(allow_nan=True, allow_infinity=True) | st.booleans()
SCALARS = NUMBERS | st.none() | st.text(max_size=8)
ENTRIES = st.fixed_dictionaries(
    {"bbox": st.lists(st.integers(-10, 80), min_size=4, max_size=4), DESCRIPTION: st.text(max_size=130)}
) | st.dictionaries(st.sampled_from(("bbox", DESCRIPTION, "x")), SCALARS | st.lists(SCALARS, max_size=5), max_size=3)
HOSTILE = st.lists(ENTRIES | SCALARS, max_size=7).map(json.dumps) | st.text() | st.recursive(SCALARS, st.lists).map(json.dumps)


def entry(box: object, text: object = "a calm lake", **more: object) -> dict[str, object]:
    return {"bbox": box, DESCRIPTION: text, **more}


def read(*entries: object, profile=VISTA, width: int = 64, height: int = 64) -> tuple[Region, ...]:
    return parse_regions(json.dumps(entries), profile, width, height)


@given(HOSTILE, st.sampled_from(sorted(PROFILES)), st.integers(8, 900), st.integers(8, 900))
@example('[{"bbox":[0,0,1e400,5],"aesthetical description":"x"}]', "vista", 64, 64)
@example("[" * 5000, "vista", 64, 64)
@example("9" * 5000, "vista", 64, 64)
@example('[{"bbox":[0,0,NaN,5],"aesthetical description":"x"}]', "vista", 64, 64)
def test_whatever_is_said_only_sound_regions_come_out(raw: str, name: str, width: int, height: int) -> None:
    profile = PROFILES[name]
    try:
        regions = parse_regions(raw, profile, width, height)
    except AnswerRejected as rejection:
        assert len(rejection.raw) <= KEPT_RAW
        return
    assert len(regions) <= profile.max_regions
    for index, region in enumerate(regions):
        x1, y1, x2, y2 = region.box
        assert all(isinstance(value, int) for value in region.box)
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert (x2 - x1) * (y2 - y1) >= profile.min_area * width * height
        assert 0 < len(region.prompt) <= profile.max_description and region.prompt.isprintable()
        for other in regions[:index]:
            assert other.prompt != region.prompt and overlap(other.box, region.box) <= 0.9


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
    for raw in ("", "\x00", "a" * 101):
        with pytest.raises(AnswerRejected):
            parse_prompt(raw, 100)


def test_every_profile_shows_pictures_within_its_limits() -> None:
    for profile in PROFILES.values():
        for width, height in ((64, 64), (1024, 768), (4000, 3000), (500, 700)):
            x, y = profile.shown_size(width, height)
            assert x % profile.multiple == 0 and y % profile.multiple == 0 and 0 < x * y <= profile.max_pixels
    assert not math.isnan(VISTA.min_area)
