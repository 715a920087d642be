"""Masks against counting pixels."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.diffusion.masks import cell_mask
from sfumato.types import Box
from tests.unit.diffusion.brute import pixel_mask

WIDTH, HEIGHT = 40, 24
boxes = st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, WIDTH), st.integers(1, HEIGHT)).map(
    lambda box: (box[0], box[1], min(WIDTH, box[0] + box[2]), min(HEIGHT, box[1] + box[3]))
)


@settings(max_examples=50, deadline=None)
@given(boxes)
def test_binary_masks_are_the_touched_cells_and_soft_ones_their_share(box: Box) -> None:
    assert torch.equal(cell_mask(box, WIDTH, HEIGHT, 4), pixel_mask(box, WIDTH, HEIGHT)[0, 0].float())
    share = pixel_mask(box, WIDTH, HEIGHT, soft=True)[0, 0].float()
    torch.testing.assert_close(cell_mask(box, WIDTH, HEIGHT, 4, 1e-6), share, rtol=0, atol=1e-5)


def blurred(start: int, end: int, size: int, soft: float) -> torch.Tensor:
    """An edge profile by brute force: a box averaged over a window ``soft`` wide, sampled 20 times a pixel, averaged over cells of 4."""
    fine = (torch.arange(size * 20) + 0.5) / 20
    window = (torch.arange(100) + 0.5) / 100 * soft - soft / 2
    points = fine[:, None] + window[None, :]
    inside = ((points >= start) | (start == 0)) & ((points < end) | (end == size))
    return inside.double().mean(1).reshape(-1, 80).mean(1)


@settings(max_examples=50, deadline=None)
@given(boxes, st.floats(0.5, 30))
def test_feathered_masks_are_blurred_boxes(box: Box, soft: float) -> None:
    x1, y1, x2, y2 = box
    expected = torch.outer(blurred(y1, y2, HEIGHT, soft), blurred(x1, x2, WIDTH, soft)).float()
    found = cell_mask(box, WIDTH, HEIGHT, 4, soft)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
    assert bool(((found >= 0) & (found <= 1)).all())


def test_the_whole_picture_stays_whole_however_soft() -> None:
    torch.testing.assert_close(cell_mask((0, 0, WIDTH, HEIGHT), WIDTH, HEIGHT, 4, 17.0), torch.ones(6, 10))
