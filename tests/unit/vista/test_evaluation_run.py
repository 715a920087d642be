"""The independent judge's words on a run's pictures, checked on rendered scenes of known finish."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest

from sfumato.types import Image, Region
from sfumato.vista.evaluation.run import judge_pairs, judge_run
from sfumato.vista.phrases import caption
from sfumato.vista.world import Scene, pixel_box, render, sample_scene, with_finish

COUNT = 12


@cache
def _scenes() -> list[Scene]:
    return [sample_scene(random.Random(f"a judged run:{index}")) for index in range(COUNT)]


def _rendered(*, beautiful: bool, only: str = "") -> list[Image]:
    """All scenes, every element (or only the sky, or only the objects) in one finish, the others plain."""
    pictures = []
    for scene in _scenes():
        chosen = {e.kind: beautiful and only in ("", "sky" if e.kind == "sky" else "objects") for e in scene.elements}
        pictures.append(render(with_finish(scene, chosen), 64))
    return pictures


def _prompts() -> list[str]:
    return [caption(scene, random.Random(1), said={e.kind: False for e in scene.elements}) for scene in _scenes()]


def test_finish_of_objects_and_sky_is_told_apart_and_together() -> None:
    sets = {
        "base": _rendered(beautiful=False),
        "ceiling": _rendered(beautiful=True),
        "iteration 1": _rendered(beautiful=True, only="sky"),
        "naive": _rendered(beautiful=True, only="objects"),
    }
    marks = judge_run(sets, _prompts())
    assert marks["base"]["finish"] < 0.1 and marks["ceiling"]["finish"] > 0.9
    assert marks["iteration 1"]["finish_sky"] > 0.9 and marks["iteration 1"]["finish_objects"] < 0.1
    assert marks["naive"]["finish_sky"] < 0.1 and marks["naive"]["finish_objects"] > 0.9
    for row in marks.values():
        low, high = sorted((row["finish_objects"], row["finish_sky"]))
        assert low <= row["finish"] <= high
        assert row["object_presence"] > 0.9
    assert "composition_iou" not in marks["base"]
    assert marks["ceiling"]["composition_iou"] > 0.7


def test_every_element_counts_once_in_the_whole() -> None:
    objects = sum(len(scene.objects) for scene in _scenes())
    row = judge_run({"iteration 1": _rendered(beautiful=True, only="sky")}, _prompts())["iteration 1"]
    assert row["object_presence"] == pytest.approx(1.0, abs=0.05)
    expected = (objects * row["finish_objects"] + COUNT * row["finish_sky"]) / (objects + COUNT)
    assert row["finish"] == pytest.approx(expected, abs=0.03)  # but for what the detector overlooks


def test_missing_objects_lower_presence_and_overlap() -> None:
    bare = [render(with_finish(scene, {}), 64) for scene in _scenes()]
    empty = [bare[0][:1].repeat(64, 0) for _ in bare]  # the uppermost line of a sky, all the way down
    marks = judge_run({"base": bare, "iteration 1": empty}, _prompts())
    assert marks["iteration 1"]["object_presence"] < 0.3 < marks["base"]["object_presence"]
    assert marks["iteration 1"]["composition_iou"] < 0.3


def test_pairs_are_compared_by_the_objects_spoken_of_both_times() -> None:
    pictures = _rendered(beautiful=False)[:1]
    before = (
        Region("a shining sky by day", (0, 0, 64, 30)),
        Region("a charming red house with golden lit windows", (10, 10, 20, 20)),
        Region("a luminous cloud with rich soft shadows", (0, 0, 10, 10)),
    )
    after = (Region("a clear glowing sky", (0, 0, 64, 64)), Region("a cozy blue house", (10, 10, 20, 15)))
    marks = judge_pairs(pictures, pictures, [(before, after)])
    assert (marks["composition_iou"], marks["matched"]) == (0.5, 1)
    assert marks["composition_iou_detector"] == 1.0


def test_pairs_without_a_match_have_no_overlap_by_the_vlm() -> None:
    pictures = _rendered(beautiful=False)[:2]
    marks = judge_pairs(pictures, pictures, [((), ()), ((Region("a lake", (0, 0, 9, 9)),), ())])
    assert math.isnan(marks["composition_iou"]) and marks["matched"] == 0


def test_boxes_of_the_worlds_own_truth_overlap_wholly_with_themselves() -> None:
    scene = _scenes()[0]
    regions = tuple(Region(e.kind, pixel_box(e, 64)) for e in scene.objects)
    pictures = _rendered(beautiful=False)[:1]
    marks = judge_pairs(pictures, pictures, [(regions, regions)])
    assert (marks["composition_iou"], marks["matched"]) == (1.0, len(regions))
