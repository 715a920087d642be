"""Checks a version before it is served: its golden pictures must be finite and score about as the registry recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Protocol

from tenacity import AsyncRetrying, retry_if_exception_type, wait_fixed

from sfumato.diffusion.limits import ModelLimits
from sfumato.errors import Busy, Diverged, InvalidInput, Unavailable
from sfumato.registry.records import Version
from sfumato.runtime.client import calling, channel
from sfumato.runtime.images import encode_png
from sfumato.runtime.settings import ClientSettings
from sfumato.texts import lines_of
from sfumato.types import GenerateRequest, Image
from sfumato.v1 import common_pb2, scoring_pb2
from sfumato.v1.scoring_pb2_grpc import ScoringServiceStub

METRICS = ("clip", "aesthetic")
GOLDEN = Path(__file__).parent / "golden.txt"
RECORDED = ("golden", "heldout")
"""Prefixes of a version's recorded metrics, in order of preference: of the golden prompts, of the run's held-out prompts."""
TOGETHER = 4
"""Golden pictures in work at the same time; few, so that requests are not slowed down."""
PAUSE = 0.2
"""Seconds between attempts to paint a golden picture while the engine's queue is full."""
BATCH = 32
"""Pictures of one call of the scoring service."""

Paint = Callable[[GenerateRequest, str], Awaitable[Image]]
"""Paints a request with a prepared version.

Raises:
    Diverged: the picture is not finite.
"""


class ImageScorer(Protocol):
    """Scores pictures."""

    async def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[dict[str, float]]:
        """CLIP agreement (cosine x 100) and aesthetic score (1 to 10) of each picture; raises Unavailable when the service is away."""
        ...


class ScoringClient:
    """The scoring service behind an address, as `ImageScorer`."""

    def __init__(self, address: str, settings: ClientSettings | None = None) -> None:
        """Connects on the first call; see `sfumato.runtime.client.channel`."""
        self._address, self._channel = address, channel(address, settings)
        self._stub = ScoringServiceStub(self._channel)

    async def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[dict[str, float]]:
        """See `ImageScorer`."""
        return await asyncio.to_thread(self._score, images, prompts)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[dict[str, float]]:
        found = []
        for start in range(0, len(images), BATCH):
            items = [
                scoring_pb2.ScoreItem(image=common_pb2.Image(data=encode_png(image)), prompt=prompt)
                for image, prompt in zip(images[start : start + BATCH], prompts[start : start + BATCH], strict=True)
            ]
            with calling(self._address):
                answer = self._stub.Score(scoring_pb2.ScoreRequest(items=items, metrics=METRICS))
            found += [dict(row.values) for row in answer.scores]
        return found


@dataclass(frozen=True, slots=True)
class GoldenPrompts:
    """The prompts that every version paints before it is served, and how far below the record the mean of a score may be.

    ``steps`` of None is the model's default. Limits are in a metric's own units: CLIP cosine x 100, aesthetic 1 to 10. They leave room
    for other prompts than the recorded ones; when the golden prompts themselves were recorded (``golden_clip``, ``golden_aesthetic``),
    a tenth of the limit applies.
    """

    prompts: tuple[str, ...] = ()
    seed: int = 1
    steps: int | None = None
    limits: Mapping[str, float] = field(default_factory=lambda: {"clip": 5.0, "aesthetic": 1.5})

    def requests(self, limits: ModelLimits) -> list[GenerateRequest]:
        """One request per prompt, each with its own seed, in the model's default size."""
        side, steps = limits.default_size, self.steps or limits.default_steps
        return [
            GenerateRequest(prompt, self.seed + index, side, side, steps, limits.default_guidance)
            for index, prompt in enumerate(self.prompts)
        ]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Result of a check: the golden pictures' mean scores, why the version is refused (empty: it passed), why there are no scores."""

    scores: Mapping[str, float]
    refused: str = ""
    unscored: str = ""


class GoldenCheck:
    """Paints the golden prompts with a version and compares their scores with the registry's record."""

    def __init__(self, paint: Paint, limits: ModelLimits, golden: GoldenPrompts, scores: ImageScorer | None) -> None:
        """Without ``scores`` the check only requires finite pictures."""
        self._paint, self._golden, self._scores = paint, golden, scores
        self._requests = golden.requests(limits)

    async def __call__(self, version: Version) -> CheckReport:
        """Check a prepared version."""
        turn = asyncio.Semaphore(TOGETHER)
        painted = await asyncio.gather(*(self._painted(request, version.id, turn) for request in self._requests), return_exceptions=True)
        images = []
        for result in painted:  # all tasks have ended, so that the caller may drop the version
            if isinstance(result, Diverged):
                return CheckReport({}, result.message)
            if isinstance(result, BaseException):
                raise result
            images.append(result)
        if not images or self._scores is None:
            return CheckReport({})
        try:
            rows = await self._scores.score(images, self._golden.prompts)
        except Unavailable as error:
            return CheckReport({}, unscored=str(error))
        means = {metric: fmean(row[metric] for row in rows) for metric in METRICS}
        return CheckReport(means, "; ".join(self._faults(means, version.metrics)))

    async def _painted(self, request: GenerateRequest, version: str, turn: asyncio.Semaphore) -> Image:
        """A golden picture; retried while the engine's queue is full."""
        async with turn:
            return await AsyncRetrying(retry=retry_if_exception_type(Busy), wait=wait_fixed(PAUSE))(self._paint, request, version)

    def _faults(self, means: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
        faults = []
        for metric, found in means.items():
            source = next((source for source in RECORDED if f"{source}_{metric}" in recorded), None)
            if source is None:
                continue
            limit = self._golden.limits[metric] * (0.1 if source == "golden" else 1.0)
            expected = recorded[f"{source}_{metric}"]
            if not found >= expected - limit:
                faults.append(f"its golden pictures' {metric} is {found:.2f}, more than {limit:g} below the recorded {expected:.2f}")
        return faults


def read_golden(path: Path = GOLDEN) -> tuple[str, ...]:
    """The prompts of a file, one per line; empty lines and lines that begin with # are ignored.

    Raises:
        InvalidInput: the file cannot be read, or has no prompt.
    """
    prompts = tuple(lines_of(path, "golden"))
    if not prompts:
        raise InvalidInput("golden", f"{path} holds no prompt.")
    return prompts
