"""The rule by which a canary is promoted or withdrawn, on numbers."""

from __future__ import annotations

import pytest

from services.inference.models.canary import EARLY, CanaryRule, TrafficSplit, VersionTally, decide

RULE = CanaryRule(weight=0.2, requests=100)


def tally(requests: int, failed: int = 0, seconds: float = 1.0, aesthetic: float = 5.0, spread: float = 1.0) -> VersionTally:
    found = VersionTally()
    for index in range(requests):
        found.add(seconds, ok=index >= failed)
        found.scored({"clip": 80.0, "aesthetic": aesthetic + spread * (index % 2 - 0.5)})
    return found


@pytest.mark.parametrize("weight", [0.01, 0.1, 1 / 3, 0.5, 1.0])
def test_the_split_is_exact_and_even(weight: float) -> None:
    split = TrafficSplit(weight)
    chosen = [split.next() for _ in range(1000)]
    assert abs(sum(chosen) - 1000 * weight) <= 1
    gaps = [index for index, canary in enumerate(chosen) if canary]
    assert max(b - a for a, b in zip(gaps, gaps[1:], strict=False)) <= 1 / weight + 1


@pytest.mark.parametrize(
    ("canary", "act", "words"),
    [
        (tally(100), "promote", "errors 0 of 100 against 0 of 400; median seconds 1 against 1; clip 80.00 against 80.00; aesthetic 5.00"),
        (tally(100, failed=1), "promote", "errors 1 of 100"),
        (tally(100, failed=3), "withdraw", "errors 3 of 100 against 0 of 400"),
        (tally(100, seconds=1.3), "withdraw", "median seconds 1.3 against 1"),
        (tally(100, seconds=1.2), "promote", "median seconds 1.2"),
        (tally(100, aesthetic=4.0), "withdraw", "aesthetic 4.00 against 5.00"),
        (tally(100, aesthetic=6.0), "promote", "aesthetic 6.00"),
        (tally(100, aesthetic=4.0, spread=20.0), "promote", "aesthetic 4.00"),  # as likely by chance
        (tally(EARLY, failed=4), "withdraw", "early"),
    ],
)
def test_the_rule_decides_by_errors_latency_and_scores_and_says_the_numbers(canary: VersionTally, act: str, words: str) -> None:
    verdict = decide(tally(400), canary, RULE, scored=True)
    assert verdict is not None and (verdict.act, words in verdict.reason) == (act, True)


@pytest.mark.parametrize(
    ("stable", "canary"),
    [
        (tally(400), tally(99)),
        (tally(40), tally(100)),
        (tally(400), tally(EARLY - 1, failed=EARLY - 1)),
        (tally(400), tally(EARLY, failed=1)),
    ],
)
def test_nothing_is_decided_on_too_little(stable: VersionTally, canary: VersionTally) -> None:
    assert decide(stable, canary, RULE, scored=True) is None


def test_where_pictures_are_scored_the_rule_waits_for_their_scores() -> None:
    canary = VersionTally()
    for _ in range(100):
        canary.add(1.0, ok=True)
    assert decide(tally(400), canary, RULE, scored=True) is None
    verdict = decide(tally(400), canary, RULE, scored=False)
    assert verdict is not None and verdict.act == "promote"
