"""A square float canvas with anti-aliased shapes, in coordinates that are shares of its side."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfumato.types import Image

Floats: TypeAlias = NDArray[np.floating]
Point: TypeAlias = tuple[float, float]
Paint: TypeAlias = Floats | Callable[[Floats, Floats], Floats]
"""A colour ``[3]``, or a function of the coordinates ``x [1, w]`` and ``y [h, 1]`` to colours ``[h, w, 3]``."""


@functools.cache
def _centres(size: int) -> Floats:
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


class Canvas:
    """What has been painted so far; ``label`` is written where a shape covers more than half of a pixel."""

    def __init__(self, size: int, labels: bool = False) -> None:
        self.size = size
        self.pixels: Floats = np.zeros((size, size, 3), np.float32)
        self.labels: NDArray[np.int8] | None = np.zeros((size, size), np.int8) if labels else None
        self.label = 0

    def image(self) -> Image:
        """The picture in 8 bits, ``[size, size, 3]``."""
        return (self.pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8)

    def window(self, x1: float, y1: float, x2: float, y2: float) -> tuple[tuple[slice, slice], Floats, Floats]:
        """The pixels around a box, one more on every side: their slice, ``x [1, w]`` and ``y [h, 1]``. May be empty."""
        size, grid = self.size, _centres(self.size)
        a, b = max(0, int(x1 * size) - 1), min(size, int(x2 * size) + 2)
        c, d = max(0, int(y1 * size) - 1), min(size, int(y2 * size) + 2)
        a, c = min(a, b), min(c, d)
        return (slice(c, d), slice(a, b)), grid[None, a:b], grid[c:d, None]

    def cover(self, where: tuple[slice, slice], alpha: Floats, colour: Floats, solid: bool = True) -> None:
        """Blend ``colour`` over the window with ``alpha [h, w]``; a solid shape is also written to the label map."""
        part = self.pixels[where]
        part += alpha[..., None] * (colour - part)
        if solid and self.labels is not None:
            self.labels[where][alpha > 0.5] = self.label

    def discs(self, discs: Sequence[tuple[float, float, float]], colour: Paint, *, solid: bool = True, alpha: float = 1.0) -> None:
        """The union of discs ``(x, y, radius)``."""
        x0, y0, r = (np.array(values, np.float32)[:, None, None] for values in zip(*discs, strict=True))
        where, x, y = self.window(float((x0 - r).min()), float((y0 - r).min()), float((x0 + r).max()), float((y0 + r).max()))
        inside = (r - np.sqrt((x - x0) ** 2 + (y - y0) ** 2)).max(0)
        self.cover(where, (inside * self.size + 0.5).clip(0, 1) * alpha, _mix(colour, x, y), solid)

    def ellipse(self, x0: float, y0: float, rx: float, ry: float, colour: Paint, *, solid: bool = True, alpha: float = 1.0) -> None:
        """One filled ellipse."""
        where, x, y = self.window(x0 - rx, y0 - ry, x0 + rx, y0 + ry)
        inside = (1 - np.sqrt(((x - x0) / rx) ** 2 + ((y - y0) / ry) ** 2)) * min(rx, ry)
        self.cover(where, (inside * self.size + 0.5).clip(0, 1) * alpha, _mix(colour, x, y), solid)

    def polygon(self, points: Sequence[Point], colour: Paint, *, solid: bool = True) -> None:
        """One convex polygon, in either orientation."""
        xs, ys = zip(*points, strict=True)
        where, x, y = self.window(min(xs), min(ys), max(xs), max(ys))
        following = [*points[1:], points[0]]
        area = sum(ax * by - bx * ay for (ax, ay), (bx, by) in zip(points, following, strict=True))
        inside: Floats | None = None
        for (ax, ay), (bx, by) in zip(points, following, strict=True):
            scale = math.copysign(1.0, area) / (math.hypot(bx - ax, by - ay) or 1e-6)
            edge = ((bx - ax) * scale) * (y - ay) - ((by - ay) * scale) * (x - ax)
            inside = edge if inside is None else np.minimum(inside, edge)
        assert inside is not None
        self.cover(where, (inside * self.size + 0.5).clip(0, 1), _mix(colour, x, y), solid)

    def glows(self, spots: Sequence[tuple[float, float, float]], colour: Floats, strength: float) -> None:
        """Light added (screened) around ``(x, y, radius)``; never part of a shape."""
        x0, y0, r = (np.array(values, np.float32)[:, None, None] for values in zip(*spots, strict=True))
        reach = 2.2 * r
        where, x, y = self.window(
            float((x0 - reach).min()), float((y0 - reach).min()), float((x0 + reach).max()), float((y0 + reach).max())
        )
        light = np.minimum((np.exp(-(((x - x0) / r) ** 2)) * np.exp(-(((y - y0) / r) ** 2))).sum(0), 1) * strength
        part = self.pixels[where]
        part += light[..., None] * (colour * (1 - part))


def vertical(top: Floats, bottom: Floats, y1: float, y2: float) -> Paint:
    """A gradient from ``top`` at ``y1`` to ``bottom`` at ``y2``."""

    def paint(x: Floats, y: Floats) -> Floats:
        share = ((y - y1) / max(1e-6, y2 - y1)).clip(0, 1)[..., None]
        return np.broadcast_to(top + (bottom - top) * share, (y.shape[0], x.shape[1], 3))

    return paint


def horizontal(left: Floats, right: Floats, x1: float, x2: float) -> Paint:
    """A gradient from ``left`` at ``x1`` to ``right`` at ``x2``."""

    def paint(x: Floats, y: Floats) -> Floats:
        share = ((x - x1) / max(1e-6, x2 - x1)).clip(0, 1)[..., None]
        return np.broadcast_to(left + (right - left) * share, (y.shape[0], x.shape[1], 3))

    return paint


def _mix(colour: Paint, x: Floats, y: Floats) -> Floats:
    return colour(x, y) if callable(colour) else colour
