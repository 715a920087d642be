"""Estimates the remaining time of a run from its events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from orchestrator.engine.stages import steps
from orchestrator.recipes.recipe import Recipe
from orchestrator.recipes.spec import RunSpec
from sfumato.runs.records import Event


def remaining(events: Sequence[Event], recipe: Recipe[Any, Any, Any], spec: RunSpec) -> timedelta | None:
    """The remaining time of the current loop at the pace so far, if it needs all its iterations; None if it is not known.

    All stages are weighted equally, so the estimate is rough in the first iteration and good after it.
    """
    loop = next((loop for loop in recipe.loops if events and loop.name == max(events, key=lambda event: event.time).phase), None)
    if loop is None:
        return None
    stages = [stage.name for stage in steps(loop.stages)]

    def place(event: Event) -> float:
        return event.iteration - 1 + (stages.index(event.stage) + event.done / max(event.total, 1)) / len(stages)

    within = [event for event in events if event.phase == loop.name and event.stage in stages]
    first, last = min(within, key=lambda event: event.time), max(within, key=place)
    done, took = place(last) - place(first), last.time - first.time
    return timedelta(seconds=round(took / done * (loop.most(spec) - place(last)))) if done > 0 and took > 0 else None
