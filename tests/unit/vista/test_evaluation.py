"""The held-out prompts and the overlap measures behind the figures."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sfumato.types import Box
from sfumato.vista.evaluation.detector import Detection
from sfumato.vista.evaluation.generator import held_out
from sfumato.vista.evaluation.overlap import composition_iou, iou
from sfumato.vista.world import KINDS

edges = st.integers(0, 63)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x1, y1 = draw(edges), draw(edges)
    return x1, y1, draw(st.integers(x1 + 1, 64)), draw(st.integers(y1 + 1, 64))


@given(boxes(), boxes())
def test_overlap_is_what_counting_pixels_gives(a: Box, b: Box) -> None:
    def pixels(box: Box) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    assert math.isclose(iou(a, b), len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)))


def test_a_lost_object_counts_as_no_overlap() -> None:
    here = {"sun": Detection(0.9, (0, 0, 10, 10)), "lake": Detection(0.9, (0, 40, 64, 60))}
    there = {"sun": Detection(0.9, (0, 0, 10, 10))}
    assert composition_iou([here], [there]) == 0.5


def test_held_out_prompts_are_fixed_and_name_their_scene() -> None:
    prompts = held_out(128)
    assert prompts == held_out(128)
    assert len({p.prompt for p in prompts}) > 120
    for p in prompts:
        named = {word for word in p.plain.replace(",", "").split() if word in KINDS}
        assert named == {element.kind for element in p.scene.objects}
    spoken = [beautiful for p in prompts for kind, beautiful in p.said.items() if kind != "sky"]
    assert 0.3 < sum(spoken) / len(spoken) < 0.45
