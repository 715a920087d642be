"""The Vista world: procedural landscapes in two finishes, with exact boxes.

A scene is a sky with one to four objects. Every element has one shape and two finishes of it, plain (flat colour) and
beautiful (gradients, glow, snow caps, reflections, lit windows, stars). The same seed gives the same scene.

Coordinates are shares of the picture's side, x to the right and y down. This is ground truth: it trains the Vista models
and evaluates the system; no stage of a run may import it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.types import Box, Image
from sfumato.vista import paint
from sfumato.vista.canvas import Canvas

KINDS = ("sun", "moon", "cloud", "birds", "mountains", "lake", "boat", "house", "tree", "flowers")
TIMES = ("day", "dusk", "night")
COLOURS: dict[str, tuple[str, ...]] = {
    "moon": ("full", "crescent"),
    "boat": ("red", "white", "yellow"),
    "house": ("red", "white", "blue", "yellow"),
    "tree": ("green", "orange", "pink"),
    "flowers": ("red", "yellow", "pink", "white"),
}
DRAWING_ORDER = ("sky", "sun", "moon", "cloud", "birds", "mountains", "lake", "house", "tree", "boat", "flowers")
OBJECTS_WEIGHT = 0.75
"""Weight of the objects in the overall finish; the sky, large and easy, has the rest."""

_COUNTS = (1, 2, 3, 4)
_COUNT_WEIGHTS = (0.15, 0.30, 0.32, 0.23)


@dataclass(frozen=True, slots=True)
class Element:
    """The sky or one object. ``box`` holds what is drawn, halo and shadow apart; ``shape`` is its geometry."""

    kind: str
    colour: str | None
    beautiful: bool
    box: tuple[float, float, float, float]
    shape: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scene:
    """A landscape: its time of day, the horizon's height and its elements in drawing order, the sky first."""

    time: str
    horizon: float
    elements: tuple[Element, ...]

    @property
    def sky(self) -> Element:
        """The sky (and, in the same finish, the ground)."""
        return self.elements[0]

    @property
    def objects(self) -> tuple[Element, ...]:
        """Every element but the sky."""
        return self.elements[1:]

    def find(self, kind: str) -> Element | None:
        """The element of this kind, if the scene has one (never more)."""
        return next((element for element in self.elements if element.kind == kind), None)


@dataclass(frozen=True, slots=True)
class Finish:
    """Share of beautiful finish, 0 to 1. A scene without objects has ``objects`` equal to ``sky``."""

    objects: float
    sky: float
    overall: float


def sample_scene(rng: random.Random, *, kinds: Sequence[str] = (), time: str | None = None, count: int | None = None) -> Scene:
    """A scene whose elements are all plain.

    Args:
        rng: the only source of randomness.
        kinds: kinds that must be present.
        time: one of ``TIMES``; drawn when absent.
        count: number of objects, one to four; drawn when absent. A boat brings its lake along.

    Raises:
        ValueError: ``kinds`` and ``time`` contradict each other.
    """
    time = time or rng.choice([t for t in TIMES if not _forbidden(t) & set(kinds)] or [""])
    if time not in TIMES or _forbidden(time) & set(kinds) or {"sun", "moon"} <= set(kinds):
        raise ValueError(f"no scene has {sorted(kinds)} together at {time or 'any time'}")
    count = max(count or rng.choices(_COUNTS, _COUNT_WEIGHTS)[0], len(kinds))
    chosen = _choose_kinds(rng, list(kinds), time, count)
    return _compose(rng, time, chosen)


def with_finish(scene: Scene, finish: bool | Mapping[str, bool]) -> Scene:
    """The same scene with another finish: of everything, or by kind (``"sky"`` included)."""
    kinds: tuple[str, ...] = ("sky", *KINDS)
    flags: Mapping[str, bool] = {kind: finish for kind in kinds} if isinstance(finish, bool) else finish
    elements = tuple(replace(element, beautiful=flags.get(element.kind, element.beautiful)) for element in scene.elements)
    return replace(scene, elements=elements)


def render(scene: Scene, size: int = 64) -> Image:
    """Paint the scene, ``[size, size, 3]``."""
    return _paint(scene, size, labels=False).image()


def label_map(scene: Scene, size: int = 64) -> NDArray[np.int8]:
    """For every pixel the index in ``scene.elements`` of what is seen there; 0 is sky and ground. ``[size, size]``."""
    labels = _paint(scene, size, labels=True).labels
    assert labels is not None
    return labels


def pixel_box(element: Element, size: int = 64) -> Box:
    """The element's box in pixels, cut to the picture."""
    x1, y1, x2, y2 = (min(1.0, max(0.0, value)) * size for value in element.box)
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


def finish_score(scene: Scene, size: int = 48) -> Finish:
    """How beautiful the scene is painted: objects weighted by the square root of their visible area, and the sky apart."""
    areas = np.bincount(label_map(scene, size).ravel(), minlength=len(scene.elements)).astype(float)
    sky = float(scene.sky.beautiful)
    weights = np.sqrt(np.maximum(areas[1:], 1.0))
    flags = np.array([element.beautiful for element in scene.objects], float)
    objects = float((weights * flags).sum() / weights.sum()) if len(flags) else sky
    return Finish(objects, sky, OBJECTS_WEIGHT * objects + (1 - OBJECTS_WEIGHT) * sky)


def _forbidden(time: str) -> set[str]:
    return {"day": {"moon"}, "dusk": set[str](), "night": {"sun"}}[time]


def _choose_kinds(rng: random.Random, chosen: list[str], time: str, count: int) -> list[str]:
    if "boat" in chosen and "lake" not in chosen:
        chosen.append("lake")
    while len(chosen) < count:
        pool = [kind for kind in KINDS if kind not in chosen and kind not in _forbidden(time)]
        if {"sun", "moon"} & set(chosen):
            pool = [kind for kind in pool if kind not in ("sun", "moon")]
        if "lake" not in chosen and count - len(chosen) < 2:
            pool.remove("boat")
        kind = rng.choice(pool)
        chosen.append(kind)
        if kind == "boat" and "lake" not in chosen:
            chosen.append("lake")
    return chosen


def _compose(rng: random.Random, time: str, kinds: list[str]) -> Scene:
    horizon = rng.uniform(0.56, 0.62)
    sky_slots = [0.2, 0.5, 0.8]
    ground_slots = [0.22, 0.78]
    rng.shuffle(sky_slots)
    rng.shuffle(ground_slots)
    elements = [_sky(rng, horizon)]
    lake: dict[str, Any] = {}
    for kind in sorted(kinds, key=DRAWING_ORDER.index):
        if kind in ("sun", "moon", "cloud", "birds"):
            box, shape = _in_the_sky(rng, kind, sky_slots.pop())
        elif kind in ("house", "tree"):
            box, shape = _on_the_ground(rng, kind, ground_slots.pop(), horizon)
        elif kind == "mountains":
            box, shape = _mountains(rng, horizon)
        elif kind == "lake":
            box, lake = _lake(rng, horizon)
            shape = lake
        elif kind == "boat":
            box, shape = _boat(rng, lake)
        else:
            box, shape = _flowers(rng)
        colour = rng.choice(COLOURS[kind]) if kind in COLOURS else None
        elements.append(Element(kind, colour, False, box, shape))
    return Scene(time, horizon, tuple(elements))


def _sky(rng: random.Random, horizon: float) -> Element:
    stars = [
        ((i % 5 + rng.uniform(0.15, 0.85)) / 5, (i // 5 + rng.uniform(0.1, 0.9)) / 3 * horizon * 0.95, rng.uniform(0.6, 1))
        for i in range(15)
    ]
    return Element("sky", None, False, (0.0, 0.0, 1.0, horizon), {"stars": stars})


def _in_the_sky(rng: random.Random, kind: str, slot: float) -> tuple[tuple[float, float, float, float], dict[str, Any]]:
    x, y = slot + rng.uniform(-0.05, 0.05), rng.uniform(0.17, 0.25)
    if kind in ("sun", "moon"):
        r = rng.uniform(0.095, 0.125)
        return (x - r, y - r, x + r, y + r), {"x": x, "y": y, "r": r}
    if kind == "cloud":
        w = rng.uniform(0.155, 0.19)
        h = 0.52 * w
        puffs = [(-0.58, 0.32, 0.42, 0.62), (-0.08, -0.12, 0.5, 0.88), (0.52, 0.28, 0.48, 0.66)]
        if rng.random() < 0.5:
            puffs = [(-px, py, pw, ph) for px, py, pw, ph in puffs]
        return (x - w, y - h, x + w, y + h), {"x": x, "y": y, "w": w, "h": h, "puffs": puffs}
    w = rng.uniform(0.078, 0.092)
    x = min(max(x, 0.2), 0.8)
    flock = [
        (x + dx + rng.uniform(-0.01, 0.01), y + dy + rng.uniform(-0.01, 0.01), w)
        for dx, dy in ((-0.095, -0.055), (0.095, -0.03), (0.0, 0.075))
    ]
    left, right = min(b[0] for b in flock) - w, max(b[0] for b in flock) + w
    top, bottom = min(b[1] for b in flock) - 0.42 * w, max(b[1] for b in flock) + 0.48 * w
    return (left, top, right, bottom), {"flock": flock}


def _mountains(rng: random.Random, horizon: float) -> tuple[tuple[float, float, float, float], dict[str, Any]]:
    count = rng.choice((2, 3))
    spread = 0.34 if count == 2 else 0.3
    middle = 0.5 + rng.uniform(-0.06, 0.06)
    peaks = [
        (middle + (i - (count - 1) / 2) * spread + rng.uniform(-0.03, 0.03), rng.uniform(0.2, 0.32), rng.uniform(1.0, 1.3))
        for i in range(count)
    ]
    left = min(x - height / slope for x, height, slope in peaks)
    right = max(x + height / slope for x, height, slope in peaks)
    return (left, horizon - max(height for _, height, _ in peaks), right, horizon), {"peaks": peaks}


def _lake(rng: random.Random, horizon: float) -> tuple[tuple[float, float, float, float], dict[str, Any]]:
    a, b = rng.uniform(0.33, 0.43), rng.uniform(0.115, 0.135)
    x, y = rng.uniform(0.44, 0.56), horizon + b + rng.uniform(0.02, 0.04)
    return (x - a, y - b, x + a, y + b), {"x": x, "y": y, "a": a, "b": b, "phase": rng.uniform(0, 6.28)}


def _boat(rng: random.Random, lake: dict[str, Any]) -> tuple[tuple[float, float, float, float], dict[str, Any]]:
    w = rng.uniform(0.125, 0.15)
    h = 1.75 * w
    x, y = lake["x"] + rng.uniform(-0.25, 0.25) * lake["a"], lake["y"] + rng.uniform(-0.05, 0.2) * lake["b"]
    return (x - w, y - h, x + w, y + 0.42 * w), {"x": x, "y": y, "w": w, "h": h}


def _on_the_ground(rng: random.Random, kind: str, slot: float, horizon: float) -> tuple[tuple[float, float, float, float], dict[str, Any]]:
    x, base = slot + rng.uniform(-0.04, 0.04), horizon + rng.uniform(0.05, 0.11)
    if kind == "house":
        w, h = rng.uniform(0.125, 0.145), rng.uniform(0.15, 0.175)
        roof = 0.8 * h
        return (x - 1.25 * w, base - h - roof, x + 1.25 * w, base), {"x": x, "base": base, "w": w, "h": h, "roof": roof}
    r, trunk = rng.uniform(0.13, 0.155), rng.uniform(0.10, 0.13)
    y = base - trunk - 0.85 * r
    leaves = [(math.cos(k * 0.9) * q, math.sin(k * 0.9) * q, rng.uniform(0.3, 0.4)) for k in range(7) for q in (rng.uniform(0.4, 0.6),)]
    return (x - r, y - r, x + r, base), {"x": x, "base": base, "r": r, "y": y, "leaves": leaves}


def _flowers(rng: random.Random) -> tuple[tuple[float, float, float, float], dict[str, Any]]:
    count, r = rng.choice((4, 5)), rng.uniform(0.046, 0.054)
    x = rng.uniform(0.32, 0.68)
    heads = [(x + (i - (count - 1) / 2) * 0.118 + rng.uniform(-0.008, 0.008), rng.uniform(0.865, 0.9)) for i in range(count)]
    left, right, top = min(h[0] for h in heads) - r, max(h[0] for h in heads) + r, min(h[1] for h in heads) - r
    return (left, top, right, 0.985), {"heads": heads, "r": r, "ground": 0.985}


def _paint(scene: Scene, size: int, labels: bool) -> Canvas:
    canvas = Canvas(size, labels)
    for label, element in enumerate(scene.elements):
        canvas.label = label
        paint.PAINTERS[element.kind](canvas, element.shape, element.colour, element.beautiful, scene.time, scene.horizon)
    return canvas
