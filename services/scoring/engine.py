"""The scoring engine: pictures and their prompts in, one number per metric out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from services.scoring.clip import CosineScorer
from services.scoring.metric import Metric, Scorer, ScoringBatch
from sfumato.errors import InvalidInput
from sfumato.types import Image

MAX_PROMPT = 2_000
"""Characters; a model reads as many words as its context holds."""


class ScoringEngine:
    """Scores batches of pictures. Stateless between calls and deterministic: a batch always gives the same numbers."""

    def __init__(self, scorers: Sequence[Scorer], *, batch: int = 32) -> None:
        self._scorers = {scorer.metric.name: scorer for scorer in scorers}
        self._batch = batch

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that are loaded."""
        return tuple(scorer.metric for scorer in self._scorers.values())

    @torch.inference_mode()
    def score(self, images: Sequence[Image], prompts: Sequence[str], metrics: Sequence[str] | None = None) -> list[dict[str, float]]:
        """For every picture its scores by metric, in the order asked for (all when ``metrics`` is None).

        Args:
            images: of any size, also of different sizes.
            prompts: one a picture.
            metrics: names of `metrics`.

        Raises:
            InvalidInput: an unknown metric, an empty or over-long prompt, an array that is no picture, unequal numbers.
        """
        chosen = list(dict.fromkeys(metrics if metrics is not None else self._scorers))
        self._check(images, prompts, chosen)
        results: list[dict[str, float]] = [{} for _ in images]
        for start in range(0, len(images), self._batch):
            rows = range(start, min(start + self._batch, len(images)))
            batch = ScoringBatch([images[i] for i in rows], [prompts[i] for i in rows])
            for name in chosen:
                values = self._scorers[name].score(batch)
                for row, value in zip(rows, values, strict=True):
                    results[row][name] = value
        return results

    @torch.inference_mode()
    def similarity(self, first: Sequence[Image], second: Sequence[Image]) -> list[float]:
        """The cosine of CLIP's image features of each pair of pictures (ArtAug, Figure 4).

        Raises:
            InvalidInput: the metric ``clip`` is not loaded, an array is no picture, unequal numbers.
        """
        scorer = self._scorers.get("clip")
        if not isinstance(scorer, CosineScorer):
            raise InvalidInput("metrics", "the similarity of two pictures needs the metric 'clip'.")
        if len(first) != len(second):
            raise InvalidInput("images", f"{len(first)} to compare with {len(second)}.", hint="Give two lists of one length.")
        values: list[float] = []
        for start in range(0, len(first), self._batch):
            pair = [ScoringBatch(images[start : start + self._batch], ()) for images in (first, second)]
            check_images([image for batch in pair for image in batch.images])
            a, b = (scorer.encoder.images(batch) for batch in pair)
            values += (a * b).sum(-1).tolist()
        return values

    def _check(self, images: Sequence[Image], prompts: Sequence[str], metrics: Sequence[str]) -> None:
        unknown = [name for name in metrics if name not in self._scorers]
        if unknown:
            raise InvalidInput("metrics", f"unknown: {', '.join(unknown)}.", hint=f"Known metrics: {', '.join(self._scorers)}.")
        if not metrics:
            raise InvalidInput("metrics", "none asked for.", hint=f"Known metrics: {', '.join(self._scorers)}.")
        if len(images) != len(prompts):
            raise InvalidInput("prompts", f"{len(prompts)} for {len(images)} images.", hint="Give one prompt for each image.")
        check_images(images)
        for prompt in prompts:
            check_prompt(prompt)


def check_images(images: Sequence[Image]) -> None:
    """Refuse arrays that are no pictures.

    Raises:
        InvalidInput: another shape than [height, width, 3], another type than uint8, or no pixels.
    """
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            what = f"an array {list(image.shape)} of {image.dtype} is no picture."
            raise InvalidInput("images", what, hint="Use uint8 [height, width, 3].")


def check_prompt(prompt: str) -> None:
    """Refuse prompts that cannot be scored against.

    Raises:
        InvalidInput: the prompt is empty or over-long.
    """
    if not prompt.strip():
        raise InvalidInput("prompt", "it is empty.", hint="Describe the picture.")
    if len(prompt) > MAX_PROMPT:
        raise InvalidInput("prompt", f"it has {len(prompt)} characters; the limit is {MAX_PROMPT}.")
