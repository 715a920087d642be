"""A canary: a share of the traffic for a second alias, and the rule by which it is promoted or withdrawn.

The rule, on the requests of both versions since they are served together (`decide`):

1. **Withdrawn early**, after 20 requests of the canary: its error rate is above the stable version's by more than ``errors``, with
   97.5 % confidence (the lower end of Wilson's interval).
2. Nothing else is decided before the canary has ``requests`` requests and the stable version half as many; and, when pictures are
   scored, before a quarter as many pictures of each have their scores.
3. **Withdrawn** if its error rate is above the stable version's by more than ``errors``; or its median latency is more than
   ``latency`` times the stable version's; or the mean of a score is below the stable version's by more than its tolerance in
   ``scores`` and by more than twice the standard error of the difference.
4. **Promoted** otherwise.

The decision moves an alias in the registry, with the numbers as the reason: promotion moves the stable alias to the canary's version,
withdrawal moves the canary's alias to the stable version. It stays in the aliases' history, every replica follows it like any other
move, and when several replicas decide at once, one succeeds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median, variance
from typing import Literal

EARLY = 20
KEPT = 5000
"""The newest latencies and scores of a version that are kept."""
Z = 1.96


@dataclass(frozen=True, slots=True)
class CanaryRule:
    """The canary's share of the traffic (``weight``) and the thresholds of the rule; see the module."""

    alias: str = "canary"
    weight: float = 0.0
    requests: int = 200
    errors: float = 0.01
    latency: float = 1.25
    scores: Mapping[str, float] = field(default_factory=lambda: {"clip": 1.0, "aesthetic": 0.25})


@dataclass(slots=True)
class VersionTally:
    """Counts of one version: requests, failed requests, seconds of those that succeeded, scores of pictures by metric."""

    requests: int = 0
    failed: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    scores: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, seconds: float, ok: bool) -> None:
        """Count a request that was answered."""
        self.requests += 1
        self.failed += not ok
        if ok:
            self.seconds.append(seconds)

    def scored(self, scores: Mapping[str, float]) -> None:
        """Count a picture's scores."""
        for metric, value in scores.items():
            self.scores.setdefault(metric, deque(maxlen=KEPT)).append(value)

    def pictures(self, metric: str) -> int:
        """Number of pictures that have this score."""
        return len(self.scores.get(metric, ()))

    @property
    def error_rate(self) -> float:
        """Failed requests divided by requests; 0 without requests."""
        return self.failed / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a canary is promoted or withdrawn, with the reason for the alias's history."""

    act: Literal["promote", "withdraw"]
    reason: str


class TrafficSplit:
    """Chooses the requests that go to the canary: exactly its share, spread evenly."""

    def __init__(self, weight: float) -> None:
        self._weight, self._owed = weight, 0.0

    def next(self) -> bool:
        """Whether the next request is the canary's."""
        self._owed += self._weight
        if self._owed < 1.0 - 1e-9:
            return False
        self._owed -= 1.0
        return True


def decide(stable: VersionTally, canary: VersionTally, rule: CanaryRule, *, scored: bool) -> Verdict | None:
    """Apply the rule of the module; ``scored`` says whether pictures are scored. None: not decided yet."""
    if canary.requests >= EARLY and _wilson_low(canary.failed, canary.requests) > stable.error_rate + rule.errors:
        return Verdict("withdraw", f"canary withdrawn early: {_errors(stable, canary)}")
    if canary.requests < rule.requests or stable.requests < rule.requests / 2:
        return None
    if scored and any(min(stable.pictures(metric), canary.pictures(metric)) < rule.requests / 4 for metric in rule.scores):
        return None
    faults = []
    if canary.error_rate > stable.error_rate + rule.errors:
        faults.append(_errors(stable, canary))
    if stable.seconds and canary.seconds and median(canary.seconds) > rule.latency * median(stable.seconds):
        faults.append(_latency(stable, canary))
    for metric, tolerance in rule.scores.items():
        if _worse(stable.scores.get(metric), canary.scores.get(metric), tolerance):
            faults.append(_score(metric, stable, canary))
    if faults:
        return Verdict("withdraw", f"canary withdrawn: {'; '.join(faults)}")
    told = [_errors(stable, canary)]
    if stable.seconds and canary.seconds:
        told.append(_latency(stable, canary))
    told += [_score(metric, stable, canary) for metric in rule.scores if stable.scores.get(metric) and canary.scores.get(metric)]
    return Verdict("promote", f"canary promoted: {'; '.join(told)}")


def _worse(stable: deque[float] | None, canary: deque[float] | None, tolerance: float) -> bool:
    """Whether the canary's mean is below by more than the tolerance and by more than twice the standard error."""
    if stable is None or canary is None or min(len(stable), len(canary)) < 2:
        return False
    short = fmean(stable) - fmean(canary)
    return short > tolerance and short > 2 * math.sqrt(variance(stable) / len(stable) + variance(canary) / len(canary))


def _wilson_low(failed: int, requests: int) -> float:
    """The lower end of Wilson's 95 % interval of a rate (Wilson 1927)."""
    rate, z2 = failed / requests, Z * Z / requests
    return (rate + z2 / 2 - Z * math.sqrt(rate * (1 - rate) / requests + z2 / (4 * requests))) / (1 + z2)


def _errors(stable: VersionTally, canary: VersionTally) -> str:
    return f"errors {canary.failed} of {canary.requests} against {stable.failed} of {stable.requests}"


def _latency(stable: VersionTally, canary: VersionTally) -> str:
    return f"median seconds {median(canary.seconds):.3g} against {median(stable.seconds):.3g}"


def _score(metric: str, stable: VersionTally, canary: VersionTally) -> str:
    return f"{metric} {fmean(canary.scores[metric]):.2f} against {fmean(stable.scores[metric]):.2f}"
