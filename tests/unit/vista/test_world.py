"""The world's properties: exact boxes, one shape in two finishes, determinism, captions that tell the truth."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.vista import phrases, world

seeds = st.integers(0, 2**32)
few = settings(max_examples=60, deadline=None)


def scene_of(seed: int) -> world.Scene:
    return world.sample_scene(random.Random(seed))


@few
@given(seeds)
def test_boxes_hold_what_they_name(seed: int) -> None:
    scene = scene_of(seed)
    labels = world.label_map(scene, 64)
    for index, element in enumerate(scene.objects, start=1):
        rows, columns = np.nonzero(labels == index)
        x1, y1, x2, y2 = world.pixel_box(element, 64)
        assert rows.size, f"{element.kind} is not seen at all"
        assert x1 <= columns.min() and columns.max() < x2
        assert y1 <= rows.min() and rows.max() < y2


@few
@given(seeds)
def test_boxes_are_tight_around_what_nothing_covers(seed: int) -> None:
    for kind in world.KINDS:
        time = "night" if kind == "moon" else "day"
        scene = world.sample_scene(random.Random(seed), kinds=(kind,), time=time, count=1)
        element = scene.elements[-1]
        rows, columns = np.nonzero(world.label_map(scene, 64) == len(scene.elements) - 1)
        x1, y1, x2, y2 = world.pixel_box(element, 64)
        slack = 8 if (kind, element.colour) == ("moon", "crescent") else 4
        assert max(columns.min() - x1, x2 - 1 - columns.max(), rows.min() - y1, y2 - 1 - rows.max()) <= slack


@few
@given(seeds)
def test_both_finishes_share_the_shape(seed: int) -> None:
    scene = scene_of(seed)
    plain, beautiful = (world.label_map(world.with_finish(scene, finish), 64) for finish in (False, True))
    assert (plain == beautiful).mean() > 0.985


@few
@given(seeds)
def test_the_finish_is_visible_in_every_element(seed: int) -> None:
    scene = scene_of(seed)
    plain = world.render(scene).astype(int)
    for index, element in enumerate(scene.elements):
        other = world.render(world.with_finish(scene, {element.kind: True})).astype(int)
        where = world.label_map(scene) == index
        assert np.abs(other - plain)[where].mean() > 6, element.kind


@few
@given(seeds)
def test_one_seed_is_one_scene(seed: int) -> None:
    assert scene_of(seed) == scene_of(seed)
    assert np.array_equal(world.render(scene_of(seed)), world.render(scene_of(seed)))
    assert phrases.training_example(random.Random(seed)) == phrases.training_example(random.Random(seed))


@few
@given(seeds)
def test_scenes_make_sense(seed: int) -> None:
    scene = scene_of(seed)
    kinds = {element.kind for element in scene.objects}
    assert 1 <= len(scene.objects) <= 4
    assert len(kinds) == len(scene.objects)
    assert not {"sun", "moon"} <= kinds
    assert "boat" not in kinds or "lake" in kinds
    assert not (scene.time == "night" and "sun" in kinds) and not (scene.time == "day" and "moon" in kinds)


@few
@given(seeds)
def test_captions_name_every_object_and_only_those(seed: int) -> None:
    scene, prompt = phrases.plain_prompt(random.Random(seed))
    named = {word for word in prompt.replace(",", "").split() if word in world.KINDS}
    assert named == {element.kind for element in scene.objects}
    assert any(words in prompt for words in phrases.TIME_WORDS[scene.time])


@few
@given(seeds)
def test_an_element_is_painted_as_its_phrase_says(seed: int) -> None:
    scene, (text,) = phrases.training_example(random.Random(seed))
    spoken = {e.kind: any(p.format(c=e.colour) in text for p in phrases.AESTHETIC.get(e.kind, ())) for e in scene.objects}
    for element in scene.objects:
        assert element.beautiful or not spoken[element.kind]


@few
@given(seeds)
def test_advice_is_for_plain_elements_and_knows_their_kind(seed: int) -> None:
    scene = world.with_finish(scene_of(seed), {kind: random.Random(f"{seed}{kind}").random() < 0.5 for kind in ("sky", *world.KINDS)})
    entries = phrases.advice(scene, 64, random.Random(seed))
    assert [phrases.kind_of(e["aesthetical description"]) for e in entries] == [e.kind for e in scene.elements if not e.beautiful]


def test_words_fit_the_tokenizer() -> None:
    from sfumato.vista.generator import TEXT_LENGTH, build_tokenizer

    tokenizer = build_tokenizer(phrases.vocabulary())
    rng = random.Random(0)
    ids = [tokenizer(text)["input_ids"] for _ in range(400) for text in phrases.training_example(rng)[1]]
    assert max(map(len, ids)) <= TEXT_LENGTH
    assert not any(tokenizer.unk_token_id in row for row in ids)


def test_the_finish_score_weighs_objects_and_sky_apart() -> None:
    scene = world.sample_scene(random.Random(5), count=3)
    sky_only = world.finish_score(world.with_finish(scene, {"sky": True}))
    objects_only = world.finish_score(world.with_finish(world.with_finish(scene, True), {"sky": False}))
    assert (sky_only.objects, sky_only.sky, sky_only.overall) == (0.0, 1.0, 0.25)
    assert (objects_only.objects, objects_only.sky, objects_only.overall) == (1.0, 0.0, 0.75)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="no scene has"):
        world.sample_scene(random.Random(0), kinds=("sun", "moon"))
    with pytest.raises(ValueError, match="no scene has"):
        world.sample_scene(random.Random(0), kinds=("sun",), time="night")
