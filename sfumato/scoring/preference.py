"""Preferences from scores; needs no PyTorch."""

from __future__ import annotations

import math


def win_probability(a: float, b: float) -> float:
    """The probability that the picture with score ``a`` is preferred to the one with score ``b``.

    A softmax of the two (PickScore, Kirstain et al. 2023, equation 1). For ``pickscore`` and ``mps``, whose scores are logits.
    """
    return 0.5 * (1 + math.tanh((a - b) / 2))
