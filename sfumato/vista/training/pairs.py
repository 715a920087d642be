"""Groups of four pictures that differ in just one respect, for CLIP's hard negatives and for preference pairs.

Picture 0 is a scene; 1 the same scene in another finish; 2 a scene that contradicts it (an object lacks, is another or has
another colour, or the time is another); 3 the same things in another place and finish. A pool is a function of seed and size.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.vista.phrases import caption
from sfumato.vista.world import COLOURS, KINDS, TIMES, Element, Scene, finish_score, render, sample_scene, with_finish

IN_GROUP = 4
ELEMENTS = ("sky", *KINDS)


@dataclass(frozen=True, slots=True)
class PairPool:
    """``n`` groups. ``scenes[i][k]`` is what picture ``k`` of group ``i`` shows."""

    scenes: list[list[Scene]]
    pictures: Tensor
    """uint8 ``[n, 4, 3, 64, 64]``"""
    finish: Tensor
    """float32 ``[n, 4, 3]``: objects, sky, overall."""

    def __len__(self) -> int:
        return len(self.scenes)


def pair_pool(seed: str, count: int, cache: Path | None = None) -> PairPool:
    """The pool of this seed and size; its pictures are kept in ``cache`` where one is given."""
    rng = random.Random(f"pairs:{seed}")
    scenes = [_group(rng) for _ in range(count)]
    path = cache / f"pairs-{seed}-{count}.safetensors" if cache else None
    if path and path.is_file():
        return PairPool(scenes, **load_file(path))
    pictures = np.stack([[render(s).transpose(2, 0, 1) for s in group] for group in scenes])
    scores = [[finish_score(s) for s in group] for group in scenes]
    finish = torch.tensor([[(f.objects, f.sky, f.overall) for f in group] for group in scores], dtype=torch.float32)
    tensors = {"pictures": torch.from_numpy(pictures), "finish": finish}
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
    return PairPool(scenes, **tensors)


def contents(scene: Scene) -> tuple[str, frozenset[tuple[str, str | None]]]:
    """What a plain caption tells of a scene: its time, and its objects with their colours."""
    return scene.time, frozenset((e.kind, e.colour) for e in scene.objects)


def lacks(scene: Scene, wanted: Scene) -> int:
    """How many things of ``wanted`` the scene lacks: objects of its kind and colour, and the time of day."""
    time, objects = contents(wanted)
    return len(objects - contents(scene)[1]) + (time != scene.time)


def mask_of(flags: Mapping[str, bool]) -> int:
    """Flags by kind as bits."""
    return sum(1 << ELEMENTS.index(kind) for kind, flag in flags.items() if flag)


def finish_mask(scene: Scene) -> int:
    """Which elements are beautiful, as bits."""
    return mask_of({e.kind: e.beautiful for e in scene.elements})


def spoken(scene: Scene, rng: random.Random, plainly: bool) -> tuple[str, int]:
    """A caption and the bits of what it calls beautiful: nothing when ``plainly``, else what is."""
    said = {e.kind: e.beautiful and not plainly for e in scene.elements}
    return caption(scene, rng, said=said), mask_of(said)


def _group(rng: random.Random) -> list[Scene]:
    base = sample_scene(rng)
    finishes = [_finish(base, rng) for _ in range(3)]
    if all(finishes[0][k] == finishes[1][k] for k in finishes[0]):
        flipped = rng.choice(list(finishes[0]))
        finishes[1] = finishes[0] | {flipped: not finishes[0][flipped]}
    altered = _altered(base, rng)
    return [
        with_finish(base, finishes[0]),
        with_finish(base, finishes[1]),
        with_finish(altered, _finish(altered, rng) if rng.random() < 0.5 else finishes[0]),
        with_finish(_elsewhere(base, rng), finishes[2]),
    ]


def _finish(scene: Scene, rng: random.Random) -> dict[str, bool]:
    share, sky = rng.choice((0.0, 0.0, 0.3, 0.5, 0.7, 1.0, 1.0)), rng.random() < 0.5
    return {e.kind: sky if e.kind == "sky" else rng.random() < share for e in scene.elements}


def _elsewhere(scene: Scene, rng: random.Random) -> Scene:
    """The same kinds and colours in a new composition."""
    fresh = sample_scene(rng, kinds=[e.kind for e in scene.objects], time=scene.time, count=len(scene.objects))
    colours = {e.kind: e.colour for e in scene.objects}
    return replace(fresh, elements=tuple(replace(e, colour=colours.get(e.kind)) for e in fresh.elements))


def _altered(scene: Scene, rng: random.Random) -> Scene:
    """A scene that lacks something of this one: an object, its colour, its kind, or the time of day."""
    victim = rng.choice(scene.objects)
    way = rng.choice(("lack", "other", "colour", "colour", "time"))
    if way == "colour" and victim.kind in COLOURS:
        others = [c for c in COLOURS[victim.kind] if c != victim.colour]
        return _with(scene, victim, replace(victim, colour=rng.choice(others)))
    kinds = {e.kind for e in scene.objects}
    times = [t for t in TIMES if t != scene.time and not (t == "night" and "sun" in kinds) and not (t == "day" and "moon" in kinds)]
    if way == "time" and times:
        return replace(scene, time=rng.choice(times))
    if way == "lack" and len(kinds) > 1 and not (victim.kind == "lake" and "boat" in kinds):
        return _with(scene, victim, None)
    while True:
        other = sample_scene(rng, time=scene.time, count=len(kinds))
        if lacks(other, scene):
            return other


def _with(scene: Scene, old: Element, new: Element | None) -> Scene:
    return replace(scene, elements=tuple(e if e is not old else new for e in scene.elements if e is not old or new))
