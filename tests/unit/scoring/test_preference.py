"""Preferences from two scores."""

from __future__ import annotations

import math

import pytest

from sfumato.scoring.preference import win_probability


def test_win_probability_is_a_softmax_of_two() -> None:
    assert win_probability(2.0, 2.0) == 0.5
    assert win_probability(1.0, -0.5) == pytest.approx(math.exp(1.0) / (math.exp(1.0) + math.exp(-0.5)))
    assert win_probability(3.0, 1.0) + win_probability(1.0, 3.0) == pytest.approx(1.0)
    assert win_probability(1e6, -1e6) == 1.0
