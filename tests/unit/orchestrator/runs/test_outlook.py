"""How long a run will take, against reckoning by hand: each stage of the loop counts alike."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.engine.stages import steps
from orchestrator.recipes.artaug import RECIPE
from orchestrator.recipes.artaug.spec import ArtAugSpec
from orchestrator.recipes.artaug.state import COMPARISON, ITERATION
from orchestrator.runs.outlook import remaining
from sfumato.runs.records import Event
from tests.unit.orchestrator.rehearsal import plan_of, write_spec

STAGES = [stage.name for stage in steps(RECIPE.loops[0].stages)]
SECONDS = 10.0
"""That every stage takes."""


@pytest.fixture
def spec(tmp_path: Path) -> ArtAugSpec:
    return plan_of(write_spec(tmp_path, stop="{max_iterations: 3, min_pairs: 1}")).spec


def _event(stage: str, iteration: int = 1, phase: str = ITERATION, done: int = 1, total: int = 1) -> Event:
    """An event of a run in which every stage takes equally long, at the time at which it happens there."""
    place = (iteration - 1) * len(STAGES) + (STAGES.index(stage) if stage in STAGES else 0) + done / max(total, 1)
    return Event(number=1, time=1e9 + SECONDS * place, phase=phase, iteration=iteration, stage=stage, done=done, total=total, reused=0)


@pytest.mark.parametrize("iterations", [1, 2])
def test_after_whole_iterations_the_others_take_as_long(spec: ArtAugSpec, iterations: int) -> None:
    told = [_event(stage, iteration) for iteration in range(1, iterations + 1) for stage in STAGES]
    assert remaining(told, RECIPE, spec) == timedelta(seconds=(3 - iterations) * len(STAGES) * SECONDS)


def test_within_a_stage_its_share_counts(spec: ArtAugSpec) -> None:
    told = [_event(STAGES[0]), _event(STAGES[1]), _event(STAGES[2], done=1, total=2)]
    assert remaining(told, RECIPE, spec) == timedelta(seconds=(3 * len(STAGES) - 2.5) * SECONDS)


def test_the_order_of_events_does_not_matter(spec: ArtAugSpec) -> None:
    told = [_event(stage) for stage in STAGES]
    assert remaining(told[::-1], RECIPE, spec) == remaining(told, RECIPE, spec)


def test_the_last_iteration_leaves_nothing(spec: ArtAugSpec) -> None:
    assert remaining([_event(stage, iteration) for iteration in (1, 2, 3) for stage in STAGES], RECIPE, spec) == timedelta(0)


def test_without_progress_or_outside_of_a_loop_nothing_is_known(spec: ArtAugSpec) -> None:
    assert remaining([], RECIPE, spec) is None
    assert remaining([_event(STAGES[0])], RECIPE, spec) is None
    after = Event(number=2, time=2e9, phase=COMPARISON, iteration=0, stage="judge", done=1, total=1, reused=0)
    assert remaining([*(_event(stage) for stage in STAGES), after], RECIPE, spec) is None
