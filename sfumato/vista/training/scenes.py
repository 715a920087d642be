"""Pools of rendered scenes with their truth, for the detector and the judge; a pool is a function of its seed and size."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.vista.world import KINDS, Scene, label_map, pixel_box, render, sample_scene, with_finish

LABELS = ("sky", *KINDS)
SIZE = 64


@dataclass(frozen=True, slots=True)
class ScenePool:
    """Rendered scenes, ``n`` of them; kinds are in the order of ``LABELS``, the sky first."""

    pictures: Tensor
    """uint8 ``[n, 3, 64, 64]``"""
    labels: Tensor
    """uint8 ``[n, 64, 64]``: which kind is seen at a pixel."""
    present: Tensor
    """uint8 ``[n, 11]``"""
    beautiful: Tensor
    """uint8 ``[n, 11]``"""
    boxes: Tensor
    """float32 ``[n, 11, 4]``: shares of the side, of whole pixels."""

    def __len__(self) -> int:
        return len(self.pictures)


def mixed_scene(rng: random.Random) -> Scene:
    """A scene whose sky and objects have their finish apart; all kinds equally often the first choice."""
    kind = rng.choice(KINDS)
    scene = sample_scene(rng, kinds=(kind,))
    share = rng.choice((0.0, 0.25, 0.5, 0.5, 0.75, 1.0))
    return with_finish(scene, {e.kind: rng.random() < (0.5 if e.kind == "sky" else share) for e in scene.elements})


def scene_pool(seed: str, count: int, cache: Path | None = None) -> ScenePool:
    """The pool of this seed and size; kept in ``cache`` where one is given."""
    path = cache / f"scenes-{seed}-{count}.safetensors" if cache else None
    if path and path.is_file():
        return ScenePool(**load_file(path))
    rng = random.Random(f"scenes:{seed}")
    pool = _render_pool([mixed_scene(rng) for _ in range(count)])
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({f.name: getattr(pool, f.name) for f in fields(pool)}, path)
    return pool


def _render_pool(scenes: list[Scene]) -> ScenePool:
    count, kinds = len(scenes), len(LABELS)
    pictures = np.empty((count, 3, SIZE, SIZE), np.uint8)
    labels = np.empty((count, SIZE, SIZE), np.uint8)
    present, beautiful = np.zeros((count, kinds), np.uint8), np.zeros((count, kinds), np.uint8)
    boxes = np.zeros((count, kinds, 4), np.float32)
    for i, scene in enumerate(scenes):
        pictures[i] = render(scene, SIZE).transpose(2, 0, 1)
        indices = np.array([LABELS.index(e.kind) for e in scene.elements], np.uint8)
        labels[i] = indices[label_map(scene, SIZE)]
        present[i, indices] = 1
        beautiful[i, indices] = [e.beautiful for e in scene.elements]
        boxes[i, indices] = np.array([pixel_box(e, SIZE) for e in scene.elements], np.float32) / SIZE
    return ScenePool(*(torch.from_numpy(a) for a in (pictures, labels, present, beautiful, boxes)))
