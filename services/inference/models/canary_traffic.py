"""Counts the requests of both versions of a canary, scores their pictures in the background, and records the rule's verdict."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from statistics import fmean

from services.inference.models import metrics
from services.inference.models.canary import CanaryRule, TrafficSplit, Verdict, VersionTally, decide
from services.inference.models.golden import ImageScorer
from sfumato.errors import Conflict, SfumatoError
from sfumato.registry.client import RegistryClient
from sfumato.types import Image

log = logging.getLogger(__name__)

WAITING = 64
"""Pictures that may wait for their scores; further ones are not scored."""
TOGETHER = 16
"""Pictures of one scoring call."""


class CanaryTraffic:
    """Counts for one pair of versions at a time; the counts restart when either version changes."""

    def __init__(self, rule: CanaryRule, registry: RegistryClient, stable: str, scores: ImageScorer | None) -> None:
        """``stable`` is the alias that the canary is compared with."""
        self.split = TrafficSplit(rule.weight)
        self._rule, self._registry, self._alias, self._scores = rule, registry, stable, scores
        self._pair: tuple[str, str] | None = None
        self._tallies: dict[str, VersionTally] = {}
        self._pictures: asyncio.Queue[tuple[str, Image, str]] = asyncio.Queue(WAITING)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start to score pictures."""
        if self._scores is not None and self._rule.weight:
            self._do(self._score_all(self._scores))

    async def close(self) -> None:
        """Cancel all background tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, stable: str | None, canary: str | None) -> None:
        """Count for these two versions from now on; None, or equal versions: there is no canary."""
        pair = (stable, canary) if stable and canary and stable != canary else None
        if pair != self._pair:
            self._pair, self._tallies = pair, {version: VersionTally() for version in pair or ()}

    def note(self, version: str, seconds: float, ok: bool, image: Image | None, prompt: str) -> None:
        """Count a request that a version answered; its picture may be scored."""
        if version not in self._tallies:
            return
        self._tallies[version].add(seconds, ok)
        if image is not None and prompt.strip() and self._scores is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._pictures.put_nowait((version, image, prompt))
        self._judge()

    def _judge(self) -> None:
        if self._pair is None:
            return
        stable, canary = self._pair
        verdict = decide(self._tallies[stable], self._tallies[canary], self._rule, scored=self._scores is not None)
        if verdict is not None:
            self._pair, self._tallies = None, {}  # decided: nothing is counted until one of the versions changes
            self._do(self._record(verdict, stable, canary))

    async def _record(self, verdict: Verdict, stable: str, canary: str) -> None:
        """Move the alias, with the verdict's reason."""
        alias, to, at = (self._alias, canary, stable) if verdict.act == "promote" else (self._rule.alias, stable, canary)
        log.info("%s (canary %s, stable %s)", verdict.reason, canary, stable)
        try:
            await asyncio.to_thread(self._registry.set_alias, alias, to, expected=at, reason=verdict.reason)
            metrics.verdicts.labels(verdict.act).inc()
        except Conflict:
            log.info("The alias %s was moved by another process meanwhile.", alias)
        except SfumatoError as error:
            log.error("The verdict could not be recorded, counting starts again: %s", error)
            self.begin(stable, canary)

    async def _score_all(self, scores: ImageScorer) -> None:
        while True:
            waiting = [await self._pictures.get()]
            while len(waiting) < TOGETHER and not self._pictures.empty():
                waiting.append(self._pictures.get_nowait())
            versions, images, prompts = zip(*waiting, strict=True)
            try:
                rows = await scores.score(images, prompts)
            except SfumatoError as error:
                log.warning("Pictures were not scored: %s", error)
                continue
            for version, row in zip(versions, rows, strict=True):
                if tally := self._tallies.get(version):
                    tally.scored(row)
                    for metric in row:
                        metrics.served_score.labels(metrics.short(version), metric).set(fmean(tally.scores[metric]))
            self._judge()

    def _do(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
