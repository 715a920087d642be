"""Figures of the scorers, the detector and the judge on rendered scenes that nothing was trained on.

The scorers come in as plain functions, so that nothing here knows the service that offers them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfumato.types import Image
from sfumato.vista.evaluation.detector import Detector
from sfumato.vista.evaluation.judge import Judge
from sfumato.vista.evaluation.overlap import iou
from sfumato.vista.phrases import caption
from sfumato.vista.world import KINDS, Scene, finish_score, pixel_box, render, sample_scene, with_finish

Score: TypeAlias = Callable[[Sequence[Image], Sequence[str]], Sequence[float]]
"""One number a picture, given one prompt a picture (higher is better)."""

CHOICES = 64


def clip_retrieval(clip: Score, rounds: int = 2) -> float:
    """Share of captions whose own picture has the highest CLIP score among 64, all scenes saying different things."""
    hits = []
    for index in range(rounds):
        rng = random.Random(f"retrieval:{index}")
        scenes = _different(rng, CHOICES)
        pictures = [render(scene) for scene in scenes]
        for own, scene in enumerate(scenes):
            scores = clip(pictures, [caption(scene, rng)] * CHOICES)
            hits.append(int(np.argmax(scores)) == own)
    return float(np.mean(hits))


def aesthetic_spearman(aesthetic: Score, count: int = 256) -> float:
    """Rank correlation (Spearman) of the aesthetic score with the true overall finish."""
    rng = random.Random("spearman")
    scenes = [_mixed(rng) for _ in range(count)]
    scores = aesthetic([render(scene) for scene in scenes], [caption(scene, rng) for scene in scenes])
    return spearman(np.asarray(scores, float), np.array([finish_score(scene).overall for scene in scenes]))


def preference_accuracy(preference: Score, count: int = 256) -> float:
    """Share of pairs under one prompt in which the better picture scores higher.

    Half of the pairs differ in finish alone; the others share it, and one picture lacks an object that the prompt names.
    """
    rng = random.Random("preference")
    better, worse, prompts = [], [], []
    while len(prompts) < count:
        scene = _uniform(rng) if len(prompts) % 2 else _mixed(rng)
        prompt = caption(scene, rng, said=dict.fromkeys((e.kind for e in scene.elements), False))
        other = _lacking(scene, rng) if len(prompts) % 2 else _refinished(scene, rng)
        if other is None:
            continue
        first, second = (scene, other) if len(prompts) % 2 or finish_score(scene).overall > finish_score(other).overall else (other, scene)
        better.append(render(first))
        worse.append(render(second))
        prompts.append(prompt)
    return float(np.mean(np.asarray(preference(better, prompts)) > np.asarray(preference(worse, prompts))))


def detector_figures(detector: Detector, count: int = 256) -> dict[str, float]:
    """``detector_presence`` (share of right answers over all kinds) and ``detector_iou`` (of objects that are there; lost ones count 0)."""
    rng = random.Random("detector figures")
    scenes = [_mixed(rng) for _ in range(count)]
    right, overlaps = [], []
    for scene, found in zip(scenes, detector.detect([render(scene) for scene in scenes]), strict=True):
        right += [(kind in found) == (scene.find(kind) is not None) for kind in KINDS]
        overlaps += [iou(found[e.kind].box, pixel_box(e)) if e.kind in found else 0.0 for e in scene.objects]
    return {"detector_presence": float(np.mean(right)), "detector_iou": float(np.mean(overlaps))}


def judge_figures(judge: Judge, count: int = 256) -> dict[str, float]:
    """``judge_objects`` and ``judge_sky``: share of finishes the judge tells rightly."""
    rng = random.Random("judge figures")
    scenes = [_mixed(rng) for _ in range(count)]
    told = judge.finish([render(scene) for scene in scenes])
    objects = [(marks[e.kind] > 0.5) == e.beautiful for scene, marks in zip(scenes, told, strict=True) for e in scene.objects]
    skies = [(marks["sky"] > 0.5) == scene.sky.beautiful for scene, marks in zip(scenes, told, strict=True)]
    return {"judge_objects": float(np.mean(objects)), "judge_sky": float(np.mean(skies))}


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rho; ties share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _mixed(rng: random.Random) -> Scene:
    """A scene whose sky and objects have their finish apart."""
    scene, share = sample_scene(rng), rng.choice((0.0, 0.5, 0.5, 1.0))
    return with_finish(scene, {e.kind: rng.random() < (0.5 if e.kind == "sky" else share) for e in scene.elements})


def _uniform(rng: random.Random) -> Scene:
    """A scene whose objects share one finish, so that one of them can go without changing it."""
    scene, objects, sky = sample_scene(rng), rng.random() < 0.5, rng.random() < 0.5
    return with_finish(scene, {e.kind: sky if e.kind == "sky" else objects for e in scene.elements})


def _different(rng: random.Random, count: int) -> list[Scene]:
    """Scenes no two of which have the same time, things, colours and finish."""
    scenes: dict[object, Scene] = {}
    while len(scenes) < count:
        scene = _mixed(rng)
        scenes.setdefault((scene.time, frozenset((e.kind, e.colour, e.beautiful) for e in scene.elements)), scene)
    return list(scenes.values())


def _refinished(scene: Scene, rng: random.Random) -> Scene | None:
    """The same scene in a clearly other finish; None where the draw was too close."""
    other = with_finish(scene, {e.kind: rng.random() < 0.5 for e in scene.elements})
    return other if abs(finish_score(other).overall - finish_score(scene).overall) >= 0.1 else None


def _lacking(scene: Scene, rng: random.Random) -> Scene | None:
    """The scene without one of its objects; None where it has only one. No boat loses its lake."""
    kinds = {e.kind for e in scene.objects}
    lost = rng.choice(sorted(kinds - ({"lake"} if "boat" in kinds else set())))
    if len(kinds) < 2:
        return None
    return Scene(scene.time, scene.horizon, tuple(e for e in scene.elements if e.kind != lost))
