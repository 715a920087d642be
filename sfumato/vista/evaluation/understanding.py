"""Figures of the understanding module: against the world's truth on rendered scenes, against the detector on generated pictures.

The module comes in as plain functions, so that nothing here knows the service that offers them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np

from sfumato.advice import REFINE
from sfumato.errors import AnswerRejected
from sfumato.types import Box, Image, Region
from sfumato.vista.evaluation.detector import Detection
from sfumato.vista.evaluation.overlap import iou
from sfumato.vista.phrases import caption, kind_of
from sfumato.vista.training.questions import mixed_scene, refinement, yes_or_no
from sfumato.vista.world import Scene, finish_score, pixel_box, render, sample_scene, with_finish

Ground: TypeAlias = Callable[[Image, str], Sequence[Region]]
"""Advice about a picture painted from a prompt; raises AnswerRejected."""
Ask: TypeAlias = Callable[[Image, str], bool]
Compare: TypeAlias = Callable[[Image, Image], str]
Refine: TypeAlias = Callable[[str], str]
Said = TypeVar("Said")

SIZE = 64
HELD_OUT = 128
CLEAR = 0.1
"""Two pictures whose finish differs by less are not compared."""


@dataclass(slots=True)
class Tally:
    """Counts over pictures: what objects were to be found, what was said of them, how well the boxes fit."""

    wanted: int = 0
    found: int = 0
    said: int = 0
    named: list[bool] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    by_kind: dict[str, list[float]] = field(default_factory=dict)

    def add(self, regions: Sequence[Region], truth: Mapping[str, Box], present: Mapping[str, Box]) -> None:
        """One picture: what was said, what should have been said, and all that is there, boxes by kind."""
        said = {kind_of(region.prompt) or "?": region.box for region in regions}
        self.said += sum(kind_of(region.prompt) != "sky" for region in regions)
        self.named += [named for region in regions if (named := _rightly_named(region, present)) is not None]
        for kind, box in truth.items():
            overlap = iou(said[kind], box) if kind in said else 0.0
            self.by_kind.setdefault(kind, []).append(overlap)
            if kind == "sky":
                continue
            self.wanted += 1
            if kind in said:
                self.found += 1
                self.overlaps.append(overlap)

    def figures(self) -> dict[str, float]:
        """Recall and precision of objects (the sky, large and easy, is in ``by_kind`` alone), mean IoU of those found, share of
        the regions that frame an object which also name it, share of valid answers.
        """
        return {
            "grounding_recall": self.found / max(1, self.wanted),
            "grounding_precision": self.found / max(1, self.said),
            "grounding_iou": float(np.mean(self.overlaps)) if self.overlaps else 0.0,
            "grounding_kind": float(np.mean(self.named)) if self.named else 0.0,
            "json_valid": float(np.mean(self.valid)) if self.valid else 0.0,
        }


def held_out_scenes(count: int = HELD_OUT) -> list[Scene]:
    """Fixed scenes nothing is trained on, every finish mixed."""
    return [mixed_scene(random.Random(f"understood:{index}")) for index in range(count)]


def on_rendered(ground: Ground, count: int = HELD_OUT) -> Tally:
    """Advice about rendered scenes against the truth: plain elements, the sky with them, are to be found and beautiful ones not."""
    tally = Tally()
    for index, scene in enumerate(held_out_scenes(count)):
        said = dict.fromkeys((e.kind for e in scene.elements), False)
        prompt = caption(scene, random.Random(index), said=said)
        boxes = {e.kind: pixel_box(e, SIZE) for e in scene.elements}
        truth = {e.kind: boxes[e.kind] for e in scene.elements if not e.beautiful}
        _tally(tally, ground, render(scene, SIZE), prompt, truth, boxes)
    return tally


def on_generated(
    ground: Ground,
    images: Sequence[Image],
    prompts: Sequence[str],
    found: Sequence[Mapping[str, Detection]],
    finish: Sequence[Mapping[str, float]],
) -> Tally:
    """Advice about generated pictures against the independent detector and judge.

    Args:
        ground: the module.
        images: what the generator painted.
        prompts: what it painted from.
        found: for each picture what the detector found, by kind.
        finish: for each picture the judge's finish by kind, 0 plain to 1 beautiful; those above one half need no advice.
    """
    tally = Tally()
    for image, prompt, objects, marks in zip(images, prompts, found, finish, strict=True):
        boxes = {kind: detection.box for kind, detection in objects.items()}
        plain = {kind: box for kind, box in boxes.items() if marks.get(kind, 0.0) < 0.5}
        _tally(tally, ground, image, prompt, plain, boxes)
    return tally


def vqa_accuracy(ask: Ask, count: int = 2 * HELD_OUT) -> float:
    """Share of right answers to yes/no questions about rendered scenes."""
    right = []
    scenes = held_out_scenes()
    for index in range(count):
        scene = scenes[index % len(scenes)]
        question, answer = yes_or_no(scene, random.Random(f"asked:{index}"))
        right.append(_valid(lambda s=scene, q=question: ask(render(s, SIZE), q)) == (answer == "yes"))
    return float(np.mean(right))


def choice_accuracy(compare: Compare, count: int = HELD_OUT) -> float:
    """Share of right choices between two pictures: two scenes at random, or one scene in two finishes."""
    right: list[bool] = []
    index = 0
    while len(right) < count:
        rng = random.Random(f"chosen:{index}")
        first, second = _pair(rng)
        index += 1
        a, b = finish_score(first).overall, finish_score(second).overall
        if abs(a - b) >= CLEAR:
            chosen = _valid(lambda x=first, y=second: compare(render(x, SIZE), render(y, SIZE)))
            right.append(chosen == ("A" if a > b else "B"))
    return float(np.mean(right))


def refinement_accuracy(refine: Refine, count: int = HELD_OUT) -> float:
    """Share of prompts whose refinement is word for word the clear one; what is clear already has to stay as it is."""
    pairs = [refinement(random.Random(f"refined:{index}")) for index in range(count)]
    return float(np.mean([_valid(lambda q=question: refine(q.removeprefix(REFINE))) == answer for question, answer in pairs]))


def evaluate_understanding(ground: Ground, ask: Ask, compare: Compare, refine: Refine, count: int = HELD_OUT) -> dict[str, float]:
    """All figures on rendered scenes; those of grounding end in ``_rendered``, but for the validity of its JSON."""
    grounding = on_rendered(ground, count).figures()
    figures = {name if name == "json_valid" else f"{name}_rendered": value for name, value in grounding.items()}
    return figures | {
        "vqa_accuracy": vqa_accuracy(ask, 2 * count),
        "choice_accuracy": choice_accuracy(compare, count),
        "refinement_accuracy": refinement_accuracy(refine, count),
    }


def _tally(tally: Tally, ground: Ground, image: Image, prompt: str, truth: Mapping[str, Box], present: Mapping[str, Box]) -> None:
    regions = _valid(lambda: ground(image, prompt))
    tally.valid.append(regions is not None)
    tally.add(regions or (), truth, present)


def _rightly_named(region: Region, present: Mapping[str, Box]) -> bool | None:
    """Whether a region names the object it frames (the one it overlaps most); None where it frames none, or speaks of the sky."""
    overlaps = {kind: iou(region.box, box) for kind, box in present.items() if kind != "sky"}
    kind = kind_of(region.prompt)
    if kind == "sky" or not overlaps or max(overlaps.values()) < 0.5:
        return None
    return kind == max(overlaps, key=overlaps.__getitem__)


def _pair(rng: random.Random) -> tuple[Scene, Scene]:
    if rng.random() < 0.5:
        return mixed_scene(rng), mixed_scene(rng)
    scene = sample_scene(rng)
    finishes = ({e.kind: rng.random() < share for e in scene.elements} for share in (0.3, 0.7))
    pair = [with_finish(scene, finish) for finish in finishes]
    rng.shuffle(pair)
    return pair[0], pair[1]


def _valid(call: Callable[[], Said]) -> Said | None:
    """The answer, or None for a rejected one."""
    try:
        return call()
    except AnswerRejected:
        return None
