"""Naive training: ``Phi(theta, X')``, one fit on X' alone; the baseline of differential training (ArtAug section 4.3.2)."""

from __future__ import annotations

from services.trainer.pairs import FitPlan, PairObjective, TrainSettings


def plan(settings: TrainSettings) -> tuple[FitPlan]:
    """One fit on X'."""
    return (FitPlan(("after",), settings.steps_after),)


NAIVE = PairObjective("naive", plan)
