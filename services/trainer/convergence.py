"""When a fit has converged on its picture: the test that chooses a pair's rank (the paper chose it by hand)."""

from __future__ import annotations

from dataclasses import dataclass

# The ranks that are tried, smallest first.
RANKS = (4, 8, 16)
# (t, epsilon) draws of a probe: fixed for a pair and a fit, the levels at the middles of equal quantiles.
PROBES = 8
# A fit has learnt its picture when no more than this share of the untrained probe loss is left.
LEARNT = 0.5
# It has stopped learning when its last quarter reduced the loss by no more than this share of the whole reduction.
SETTLED = 0.15


@dataclass(frozen=True, slots=True)
class ProbeLosses:
    """The loss on the fixed probes before the first step, after three quarters of the steps and after the last."""

    start: float
    late: float
    end: float

    def converged(self) -> bool:
        """Whether the rank was enough.

        It was if the fit learnt the picture, ``end <= LEARNT * start``, and had then stopped learning,
        ``late - end <= SETTLED * (start - end)``. A rank that is too small leaves too much of the loss; one that still falls
        at the end would have needed more steps, and a higher rank needs fewer. The smallest rank that converges is taken, the
        largest of `RANKS` where none does.
        """
        return self.end <= LEARNT * self.start and self.late - self.end <= SETTLED * (self.start - self.end)
