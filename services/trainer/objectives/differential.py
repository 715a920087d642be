"""Differential training (ArtAug section 3.3): from a kept pair (X, X') to the adapter that holds their difference.

``phi_1 = argmin E[L]`` on X from theta; ``phi_2 = argmin E[L]`` on X' from ``theta + phi_1``, phi_1 frozen. phi_1 is dropped: it has
learnt this picture, and phi_2 what makes X' better than X.
"""

from __future__ import annotations

from services.trainer.pairs import FitPlan, PairObjective, TrainSettings


def plan(settings: TrainSettings) -> tuple[FitPlan, FitPlan]:
    """phi_1 on X, then phi_2 on X'."""
    return FitPlan(("before",), settings.steps_before), FitPlan(("after",), settings.steps_after)


DIFFERENTIAL = PairObjective("differential", plan)
