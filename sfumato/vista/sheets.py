"""Pictures side by side on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfumato.types import Image


def sheet(images: Sequence[Image], columns: int, scale: int = 1, gap: int = 2) -> Image:
    """A contact sheet on white, each picture enlarged ``scale`` times without smoothing."""
    height, width = images[0].shape[0] * scale, images[0].shape[1] * scale
    rows = -(-len(images) // columns)
    page = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        page[y : y + height, x : x + width] = image.repeat(scale, 0).repeat(scale, 1)
    return page
