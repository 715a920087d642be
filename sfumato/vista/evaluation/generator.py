"""Figures of the generator by the independent detector and judge: what is there, in which finish, and how it stays in place."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FluxPipeline

from sfumato.types import Image
from sfumato.vista.evaluation.detector import Detector
from sfumato.vista.evaluation.judge import Judge
from sfumato.vista.evaluation.overlap import composition_iou
from sfumato.vista.generator import TEXT_LENGTH
from sfumato.vista.phrases import caption
from sfumato.vista.world import Scene, sample_scene

STEPS = 20


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One held-out prompt: the scene it names, which elements it speaks of beautifully, its wordings and its seed."""

    scene: Scene
    said: Mapping[str, bool]
    prompt: str
    plain: str
    aesthetic: str
    seed: int


def held_out(count: int = 128) -> list[HeldOut]:
    """Fixed prompts no model was trained on (their seeds are used nowhere else): half plain, a quarter aesthetic, a quarter mixed."""
    prompts = []
    for index in range(count):
        rng = random.Random(f"held out:{index}")
        scene = sample_scene(rng)
        kinds = [element.kind for element in scene.elements]
        share = (0.0, 1.0, 0.0, 0.5)[index % 4]
        said = {kind: rng.random() < share for kind in kinds}
        words = rng.getrandbits(32)
        wordings = (said, dict.fromkeys(kinds, False), dict.fromkeys(kinds, True))
        texts = [caption(scene, random.Random(words), said=flags) for flags in wordings]
        prompts.append(HeldOut(scene, said, texts[0], texts[1], texts[2], seed=900_000 + index))
    return prompts


@torch.no_grad()
def paint(pipeline: FluxPipeline, prompts: Sequence[str], seeds: Sequence[int], batch: int = 16) -> list[Image]:
    """One picture a prompt, each from its own seed."""
    images: list[Image] = []
    for start in range(0, len(prompts), batch):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
        out = pipeline(
            list(prompts[start : start + batch]),
            height=64,
            width=64,
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            max_sequence_length=TEXT_LENGTH,
            generator=generators,
            output_type="np",
        ).images  # pyright: ignore[reportAttributeAccessIssue]
        images += list((np.asarray(out) * 255).round().astype(np.uint8))
    return images


def generator_figures(pipeline: FluxPipeline, detector: Detector, judge: Judge, count: int = 128) -> dict[str, float]:
    """``object_presence``, ``finish_accuracy`` (and for objects and sky apart), ``composition_iou``, ``seconds_per_image``."""
    prompts = held_out(count)
    images = paint(pipeline, [p.prompt for p in prompts], [p.seed for p in prompts])
    found, finish = detector.detect(images), judge.finish(images)
    present = [element.kind in seen for p, seen in zip(prompts, found, strict=True) for element in p.scene.objects]
    objects = [
        (mark[element.kind] > 0.5) == p.said[element.kind]
        for p, seen, mark in zip(prompts, found, finish, strict=True)
        for element in p.scene.objects
        if element.kind in seen
    ]
    skies = [(mark["sky"] > 0.5) == p.said["sky"] for p, mark in zip(prompts, finish, strict=True)]
    plain, aesthetic = (paint(pipeline, [getattr(p, way) for p in prompts], [p.seed for p in prompts]) for way in ("plain", "aesthetic"))
    return {
        "object_presence": float(np.mean(present)),
        "finish_accuracy": float(np.mean(objects + skies)),
        "finish_accuracy_objects": float(np.mean(objects)),
        "finish_accuracy_sky": float(np.mean(skies)),
        "composition_iou": composition_iou(detector.detect(plain), detector.detect(aesthetic)),
        "seconds_per_image": seconds(lambda: paint(pipeline, [prompts[0].prompt], [1])),
    }


def presence_by_kind(pipeline: FluxPipeline, detector: Detector, count: int = 128) -> dict[str, float]:
    """Share of the pictures that show each kind their prompt names."""
    prompts = held_out(count)
    found = detector.detect(paint(pipeline, [p.prompt for p in prompts], [p.seed for p in prompts]))
    pairs = [(element.kind, element.kind in seen) for p, seen in zip(prompts, found, strict=True) for element in p.scene.objects]
    return {kind: float(np.mean([there for name, there in pairs if name == kind])) for kind in sorted({kind for kind, _ in pairs})}


def seconds(call) -> float:  # noqa: ANN001 - any callable without arguments
    """Median wall time of three calls after a warm-up."""
    call()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[1]
