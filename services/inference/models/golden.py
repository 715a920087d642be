"""Whether a version may be served: its golden pictures are finite, and score about what the registry recorded of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Protocol

from sfumato.diffusion.limits import ModelLimits
from sfumato.errors import Busy, Diverged, InvalidInput, Unavailable
from sfumato.registry.records import Version
from sfumato.runtime.client import calling, channel
from sfumato.runtime.images import encode_png
from sfumato.runtime.settings import ClientSettings
from sfumato.types import GenerateRequest, Image
from sfumato.v1 import common_pb2, scoring_pb2
from sfumato.v1.scoring_pb2_grpc import ScoringServiceStub

METRICS = ("clip", "aesthetic")
GOLDEN = Path(__file__).parent / "golden.txt"
RECORDED = ("golden", "heldout")
"""Where a version's record says what its pictures score: of these very prompts, else of the run's held-out ones."""
TOGETHER = 4
"""Golden pictures that are in work at the same time: requests come first."""
PAUSE = 0.2
"""Seconds before a golden picture that the engine has no room for is asked for again."""
BATCH = 32
"""Pictures of one call to the scoring service."""

Paint = Callable[[GenerateRequest, str], Awaitable[Image]]
"""Paints a request with a version that is prepared.

Raises:
    Diverged: the picture is not finite.
"""


class Scorer(Protocol):
    """Gives pictures numbers."""

    async def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[dict[str, float]]:
        """CLIP agreement (cosine x 100) and aesthetic (1 to 10) of each picture; raises Unavailable where nobody answers."""
        ...


class ScoringClient:
    """The scoring service behind an address, as `Scorer`."""

    def __init__(self, address: str, settings: ClientSettings | None = None) -> None:
        """Nothing is connected yet; see `sfumato.runtime.client.channel`."""
        self._address, self._channel = address, channel(address, settings)
        self._stub = ScoringServiceStub(self._channel)

    async def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[dict[str, float]]:
        """See `Scorer`."""
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
    """What every version paints before it is served, and how far below its record the mean of a score may lie.

    ``steps`` of None are the model's default. Limits are in a metric's own units: CLIP's cosine x 100, aesthetic's 1 to 10. They have
    room for other prompts than the recorded ones; where the record is of the golden prompts themselves (``golden_clip``,
    ``golden_aesthetic``) a tenth of them is allowed.
    """

    prompts: tuple[str, ...] = ()
    seed: int = 1
    steps: int | None = None
    limits: Mapping[str, float] = field(default_factory=lambda: {"clip": 5.0, "aesthetic": 1.5})

    def requests(self, limits: ModelLimits) -> list[GenerateRequest]:
        """One picture a prompt, each with a seed of its own, of the model's default size."""
        side, steps = limits.default_size, self.steps or limits.default_steps
        return [
            GenerateRequest(prompt, self.seed + index, side, side, steps, limits.default_guidance)
            for index, prompt in enumerate(self.prompts)
        ]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found of a version: its golden pictures' mean scores, why it is refused (empty: it is not), and why there are no scores."""

    scores: Mapping[str, float]
    refused: str = ""
    unscored: str = ""


class GoldenCheck:
    """Paints the golden prompts with a version and holds their scores against the registry's record."""

    def __init__(self, paint: Paint, limits: ModelLimits, golden: GoldenPrompts, scores: Scorer | None) -> None:
        """Without ``scores`` pictures are looked at for finite numbers only."""
        self._paint, self._golden, self._scores = paint, golden, scores
        self._requests = golden.requests(limits)

    async def __call__(self, version: Version) -> CheckReport:
        """What is to be said of a version that is prepared."""
        turn = asyncio.Semaphore(TOGETHER)
        painted = await asyncio.gather(*(self._painted(request, version.id, turn) for request in self._requests), return_exceptions=True)
        images = []
        for result in painted:  # all have ended: nobody paints with the version any more when this is left
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
        """A golden picture; it waits where the engine has no room for it beside the requests it serves."""
        async with turn:
            while True:
                try:
                    return await self._paint(request, version)
                except Busy:
                    await asyncio.sleep(PAUSE)

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
    """The prompts of a file, one a line; empty lines and those that begin with # are none.

    Raises:
        InvalidInput: it cannot be read, or holds none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("golden", f"{path} cannot be read.", hint="Give a text file with a prompt a line.") from error
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise InvalidInput("golden", f"{path} holds no prompt.")
    return prompts
