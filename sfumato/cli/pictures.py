"""Pairs of pictures, before and after: in a terminal, and as one picture for a viewer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.table import Table
from rich.text import Text

from sfumato.cli.ground import COLOURS, drawn
from sfumato.runtime.images import resize
from sfumato.types import Image, Region

__all__ = ["COLOURS", "pair_picture", "side_by_side"]

UPPER = "▀"
GAP = 3


def side_by_side(before: Image, after: Image, regions: Sequence[Region], columns: int, lines: int) -> Table:
    """Both pictures, as large as ``columns`` by ``lines`` characters allow, the regions' edges on the left one."""
    width = max(2, (columns - GAP) // 2)
    table = Table.grid(padding=(0, GAP, 0, 0))
    table.add_row(_blocks(before, width, lines, regions), _blocks(after, width, lines, ()))
    return table


def _blocks(picture: Image, columns: int, lines: int, regions: Sequence[Region]) -> Text:
    """A picture in half blocks: every character is two pixels, the upper in its own colour and the lower in the ground's."""
    height, width = picture.shape[:2]
    scale = min(columns / width, 2 * lines / height)
    across, down = max(2, int(width * scale)), max(2, int(height * scale) // 2 * 2)
    small = resize(picture, across, down).copy()
    for number, region in enumerate(regions):
        _outline(small, region, across / width, down / height, COLOURS[number % len(COLOURS)])
    rows = []
    for row in range(0, down, 2):
        rows.append(Text())
        for upper, lower in zip(small[row], small[row + 1], strict=True):
            rows[-1].append(UPPER, Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
    return Text("\n", no_wrap=True).join(rows)


def _outline(picture: Image, region: Region, across: float, down: float, colour: str) -> None:
    """The edges of a region on the picture, one pixel wide."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = region.box
    left, right = min(int(x1 * across), width - 1), min(max(round(x2 * across) - 1, 0), width - 1)
    top, bottom = min(int(y1 * down), height - 1), min(max(round(y2 * down) - 1, 0), height - 1)
    ink = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.uint8)
    picture[[top, bottom], left : right + 1] = ink
    picture[top : bottom + 1, [left, right]] = ink


def pair_picture(before: Image, after: Image, regions: Sequence[Region]) -> Image:
    """X with its regions drawn and described, beside X', in one picture."""
    left, right = drawn(before, regions), drawn(after, ())
    return np.concatenate([left, np.pad(right, ((0, left.shape[0] - right.shape[0]), (0, 0), (0, 0)), constant_values=255)], axis=1)
