"""Pictures in a terminal, side by side, in half blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.table import Table
from rich.text import Text

from sfumato.drawing import COLOURS
from sfumato.runtime.images import resize
from sfumato.types import Image, Region

UPPER = "▀"
GAP = 3


def half_blocks(pictures: Sequence[tuple[Image, Sequence[Region]]], columns: int, lines: int) -> Table:
    """Pictures from left to right, as large as ``columns`` by ``lines`` characters allow, with the edges of their regions."""
    width = max(2, (columns - GAP * (len(pictures) - 1)) // len(pictures))
    table = Table.grid(padding=(0, GAP, 0, 0))
    table.add_row(*(_blocks(picture, width, lines, regions) for picture, regions in pictures))
    return table


def _blocks(picture: Image, columns: int, lines: int, regions: Sequence[Region]) -> Text:
    """A picture in half blocks: every character is two pixels, the upper in the text's colour and the lower in the background's."""
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
