"""Boxes with descriptions drawn on pictures, and pictures side by side in one image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from sfumato.types import Image, Region

COLOURS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00", "#bf5af2", "#ff9500")
"""The colours of the boxes, in their order; black text is legible on all of them."""
LINE = 14
"""The height of a line of text, in pixels."""


def drawn(picture: Image, regions: Sequence[Region], least: int = 512) -> Image:
    """The picture, enlarged to a longer side of at least ``least`` pixels, with numbered boxes, and their descriptions below it."""
    height, width = picture.shape[:2]
    scale = max(1, -(-least // max(height, width)))
    page = Pillow.new("RGB", (width * scale, height * scale + LINE * len(regions) + (4 if regions else 0)), "white")
    page.paste(Pillow.fromarray(picture.repeat(scale, 0).repeat(scale, 1)), (0, 0))
    pen = ImageDraw.Draw(page)
    for number, region in enumerate(regions):
        x1, y1, x2, y2 = (value * scale for value in region.box)
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=max(2, scale // 4))
        pen.rectangle((x1, y1, x1 + 12, y1 + LINE), fill=colour)
        pen.text((x1 + 3, y1 + 1), str(number + 1), fill="black")
        text = f"{number + 1}  {region.prompt}".encode("latin-1", "replace").decode("latin-1")
        pen.text((4, height * scale + 2 + LINE * number), text, fill="black")
    return np.asarray(page)


def side_by_side(pictures: Sequence[tuple[Image, Sequence[Region]]]) -> Image:
    """Pictures, each as `drawn` with its regions, from left to right in one image; white below the shorter ones."""
    pages = [drawn(picture, regions) for picture, regions in pictures]
    height = max(page.shape[0] for page in pages)
    return np.concatenate([np.pad(page, ((0, height - page.shape[0]), (0, 0), (0, 0)), constant_values=255) for page in pages], axis=1)
