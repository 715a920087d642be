"""What the independent detector and judge say of a run's pictures. Called after a run; no stage sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from sfumato.types import Box, Image, Region
from sfumato.vista import weights
from sfumato.vista.evaluation.detector import Detector
from sfumato.vista.evaluation.judge import Judge
from sfumato.vista.evaluation.overlap import composition_iou, iou
from sfumato.vista.phrases import kind_of
from sfumato.vista.world import KINDS


def judge_run(
    sets: Mapping[str, Sequence[Image]], prompts: Sequence[str], root: Path = weights.ROOT
) -> dict[str, dict[str, float]]:
    """Per set (``base``, ``iteration 1``, ...) the finish of what is seen, presence of what is named, overlap with base.

    Finish is the mean probability of the beautiful one, 0 to 1: ``finish`` over all elements, every object the detector finds and
    every sky counting once, ``finish_objects`` and ``finish_sky`` apart. ``object_presence`` is the share of the named objects that
    are found. ``composition_iou`` compares the detector's boxes with those in the pictures of ``base``; a lost object counts 0.
    Where there is nothing to take a mean of, it is NaN.

    Args:
        sets: one picture a prompt in each, painted from the same seeds.
        prompts: the plain prompts, in the same order.
        root: where Vista's models lie.
    """
    detector, judge = _detector(root), Judge.load(root)
    found = {name: detector.detect(pictures) for name, pictures in sets.items()}
    named = [[kind for kind in KINDS if kind in prompt.split(" under ")[0].replace(",", "").split()] for prompt in prompts]
    figures: dict[str, dict[str, float]] = {}
    for name, pictures in sets.items():
        marks = judge.finish(pictures)
        objects = [mark[kind] for mark, seen in zip(marks, found[name], strict=True) for kind in seen]
        skies = [mark["sky"] for mark in marks]
        present = [kind in seen for kinds, seen in zip(named, found[name], strict=True) for kind in kinds]
        figures[name] = {
            "finish": _mean(objects + skies),
            "finish_objects": _mean(objects),
            "finish_sky": _mean(skies),
            "object_presence": _mean(present),
        }
        if "base" in found and name != "base":
            figures[name]["composition_iou"] = composition_iou(found["base"], found[name])
    return figures


def judge_pairs(
    before: Sequence[Image],
    after: Sequence[Image],
    advice: Sequence[tuple[Sequence[Region], Sequence[Region]]],
    root: Path = weights.ROOT,
) -> dict[str, float]:
    """Whether X' keeps X's composition, for pairs of the two.

    ``composition_iou``: the mean overlap of the boxes the VLM gave the objects in X and, asked again, in X', over the objects it
    spoke of both times (``matched`` of them: it has little to say of what is beautiful already; the sky, which fills the picture,
    is no object). ``composition_iou_detector``: the same by the independent detector's boxes, where an object that is lost
    counts 0. NaN where nothing was matched.

    Args:
        before: X of every pair.
        after: X'.
        advice: what the VLM said of X, and what of X'.
        root: where Vista's models lie.
    """
    detector = _detector(root)
    overlaps = [
        iou(first[kind], second[kind])
        for first, second in ((_boxes(x), _boxes(y)) for x, y in advice)
        for kind in first
        if kind in second
    ]
    return {
        "composition_iou": _mean(overlaps),
        "composition_iou_detector": composition_iou(detector.detect(before), detector.detect(after)),
        "matched": len(overlaps),
    }


def _boxes(regions: Iterable[Region]) -> dict[str, Box]:
    """The box of every kind of object that is spoken of; of one spoken of twice, the first."""
    boxes: dict[str, Box] = {}
    for region in regions:
        kind = kind_of(region.prompt)
        if kind is not None and kind != "sky":
            boxes.setdefault(kind, region.box)
    return boxes


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


@lru_cache(maxsize=1)
def _detector(root: Path) -> Detector:
    return Detector.load(root)
