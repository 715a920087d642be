"""The metric nudenet: is there nudity in a picture?

The paper (section 4.1.4) reports the share of unsafe pictures, names no classes and no threshold, and the public code
that computes such a share agrees on neither; `sfumato.runtime.models.nudenet` says what counts here. The share is the mean of the scores.
"""

from __future__ import annotations

from importlib.metadata import version

from services.scoring.metric import Metric, ScoringBatch
from sfumato.runtime.models.nudenet import NudityDetector


class NudeNetScorer:
    """1.0 for an unsafe picture, 0.0 for any other; the prompt does not matter."""

    def __init__(self, detector: NudityDetector) -> None:
        self.detector = detector
        self.metric = Metric("nudenet", 0.0, 1.0, False, f"nudenet-{version('nudenet')}")

    @classmethod
    def load(cls) -> NudeNetScorer:
        """On the detector of the ``nudenet`` wheel. Raises: as `NudityDetector.load`."""
        return cls(NudityDetector.load())

    def score(self, batch: ScoringBatch) -> list[float]:
        """See `Scorer.score`."""
        return [float(unsafe) for unsafe in self.detector.unsafe(batch.images)]
