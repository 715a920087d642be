"""Pictures to understand: scenes of the world, rendered, and painted over by the generator."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.vista.phrases import caption
from sfumato.vista.training.questions import mixed_scene
from sfumato.vista.training.reader import MERGE_ORDER
from sfumato.vista.understanding import GRID, PATCH, SIZE
from sfumato.vista.world import OBJECTS_WEIGHT, Scene, label_map, render

VISIBLE = 5
"""A patch belongs to an object that covers more than so many of its 64 pixels."""


@dataclass(frozen=True, slots=True)
class PicturePool:
    """``n`` scenes of one seed: their pictures and, for every patch, which element is seen there."""

    scenes: list[Scene]
    pictures: Tensor
    """uint8 ``[n, 3, 64, 64]``"""
    elements: Tensor
    """uint8 ``[n, 64]``: index in ``scene.elements``, in Qwen2-VL's order of patches."""
    scores: Tensor
    """float32 ``[n]``: overall finish."""

    def __len__(self) -> int:
        return len(self.scenes)

    @classmethod
    def make(cls, seed: str, count: int, cache: Path | None = None) -> PicturePool:
        """The pool of this seed and size; rendered pictures are kept in ``cache`` where one is given."""
        scenes = [mixed_scene(random.Random(f"understanding:{seed}:{i}")) for i in range(count)]
        path = cache / f"pictures-{seed}-{count}.safetensors" if cache else None
        if path and path.is_file():
            return cls(scenes, **load_file(path))
        pictures, elements, scores = (
            np.empty((count, 3, SIZE, SIZE), np.uint8),
            np.empty((count, GRID * GRID), np.uint8),
            np.empty(count, np.float32),
        )
        for i, scene in enumerate(scenes):
            labels = label_map(scene, SIZE)
            pictures[i] = render(scene, SIZE).transpose(2, 0, 1)
            elements[i] = _patch_elements(labels, len(scene.elements))[MERGE_ORDER.numpy()]
            scores[i] = _finish(scene, labels)
        tensors = {"pictures": torch.from_numpy(pictures), "elements": torch.from_numpy(elements), "scores": torch.from_numpy(scores)}
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
        return cls(scenes, **tensors)


@torch.no_grad()
def repainted(pool: PicturePool, pipeline: Any, count: int, path: Path, steps: int = 10) -> Tensor:
    """The pool's first ``count`` pictures, noised to between 0 and 0.6 and painted to the end by the generator; uint8.

    The generator is told the truth about the picture, so that what it paints stays what the scene says.
    """
    if path.is_file():
        return load_file(path)["pictures"]
    from sfumato.vista.generator import image_ids, pack

    source, rng = torch.Generator().manual_seed(6), random.Random(6)
    pictures = []
    for start in range(0, count, 64):
        index = range(start, min(start + 64, count))
        latents = pack(_encode(pipeline.vae, pool.pictures[start : start + len(index)]))
        prompts = [caption(pool.scenes[i], rng) for i in index]
        sequence, pooled, text_ids = pipeline.encode_prompt(prompts, None, max_sequence_length=32)
        first = int(torch.randint(int(0.4 * steps), steps + 1, (1,), generator=source))
        sigmas = torch.linspace(1, 0, steps + 1)[first:]
        x = (1 - sigmas[0]) * latents + sigmas[0] * torch.randn(latents.shape, generator=source).to(latents.device)
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            velocity = pipeline.transformer(
                hidden_states=x,
                timestep=sigma.expand(len(x)),
                encoder_hidden_states=sequence,
                pooled_projections=pooled,
                img_ids=image_ids(8, 8).to(x.device),
                txt_ids=text_ids,
                return_dict=False,
            )[0]
            x = x + (following - sigma) * velocity
        side = SIZE // 8
        cells = x.view(len(x), side, side, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        pictures.append(_decode(pipeline.vae, cells.reshape(len(x), -1, 2 * side, 2 * side)))
    save_file({"pictures": torch.cat(pictures)}, path)
    return torch.cat(pictures)


def _encode(vae: Any, pictures: Tensor) -> Tensor:
    mean = vae.encode(pictures.to(vae.device).float() / 127.5 - 1).latent_dist.mean
    return (mean - vae.config["shift_factor"]) * vae.config["scaling_factor"]


def _decode(vae: Any, latents: Tensor) -> Tensor:
    pictures = vae.decode(latents / vae.config["scaling_factor"] + vae.config["shift_factor"]).sample
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def _patch_elements(labels: np.ndarray, count: int) -> np.ndarray:
    """For each patch the object seen most in it, or the sky; ``[64]`` in rows."""
    cells = labels.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    areas = (cells[:, :, None] == np.arange(count)).sum(1)
    if count == 1:
        return np.zeros(len(cells), np.uint8)
    best = areas[:, 1:].argmax(1) + 1
    return np.where(areas[np.arange(len(cells)), best] > VISIBLE, best, 0).astype(np.uint8)


def _finish(scene: Scene, labels: np.ndarray) -> float:
    """``world.finish_score(scene).overall`` from labels that are there already."""
    areas = np.bincount(labels.ravel(), minlength=len(scene.elements)).astype(float)
    weights = np.sqrt(np.maximum(areas[1:], 1.0))
    flags = np.array([e.beautiful for e in scene.objects], float)
    sky = float(scene.sky.beautiful)
    objects = float((weights * flags).sum() / weights.sum()) if len(flags) else sky
    return OBJECTS_WEIGHT * objects + (1 - OBJECTS_WEIGHT) * sky
