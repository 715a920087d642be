"""Prometheus metrics of the served versions. The label ``version`` is the first 12 digits of the id."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from sfumato.runtime.telemetry import SECONDS

requests = Counter("sfumato_inference_version_requests", "Requests that a version answered: ok or failed.", ["version", "outcome"])
seconds = Histogram("sfumato_inference_version_seconds", "Seconds of a version's requests.", ["version"], buckets=SECONDS)
score = Gauge("sfumato_inference_version_score", "Mean score of a version's golden pictures.", ["version", "metric"])
served_score = Gauge("sfumato_inference_version_served_score", "Mean score of its pictures while a canary was on.", ["version", "metric"])
serving = Gauge("sfumato_inference_serving", "1 for the version that stands behind an alias.", ["alias", "version"])
prepared = Gauge("sfumato_inference_versions", "Versions that are prepared.")
swaps = Counter("sfumato_inference_swaps", "Moves of an alias that were followed: served or refused.", ["alias", "outcome"])
verdicts = Counter("sfumato_inference_canary_verdicts", "Canaries promoted or withdrawn by this process.", ["act"])
swap_seconds = Histogram("sfumato_inference_swap_seconds", "Seconds from a move to its version being served.", buckets=SECONDS)


def short(version: str) -> str:
    """A version's label."""
    return version[:12]
