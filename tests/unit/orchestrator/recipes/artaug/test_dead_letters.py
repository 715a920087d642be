"""A task that always fails becomes a dead letter; the run continues without its samples and reports them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine.engine import Engine
from orchestrator.engine.stages import Barrier, PerBatch, Progress
from orchestrator.recipes.artaug import RECIPE
from orchestrator.recipes.artaug.state import ITERATION, KEPT, SET_ASIDE, State, dead_lettered
from orchestrator.recipes.events import EventBuilder
from sfumato.errors import PoisonTask
from sfumato.runs.records import DeadLettered, Event
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Manifest, Task
from tests.unit.bus_system import running
from tests.unit.orchestrator.engine.test_engine import Numbers
from tests.unit.orchestrator.rehearsal import InPlace, plan_of, write_spec

REASON = "A task was set aside after 3 tries: out of memory."


# --- over a real bus: the worker fails every time it is given the task ---


def _task(samples: Iterable[int]) -> Task:
    items = tuple(samples)
    return Task(stage="s", kind="echo.fail" if 3 in items else "echo.double", items=items, params={}, model="m", model_reference="")


def _doubled(_: tuple[int, ...], done: Manifest) -> tuple[int, ...]:
    return tuple(done.values)


def _summed(_: None, state: Numbers, done: list[Manifest]) -> Numbers:
    return replace(state, total=sum(value for manifest in done for value in manifest.values))


def _nothing(task: Task, reason: str) -> Manifest:
    assert "the engine divided by zero" in reason
    described = {"kind": task.kind, "items": task.items, "params": task.params, "model": task.model}
    return Manifest(task_id=task.id, values=[0], files={}, versions={}, **described)


STAGES = (
    PerBatch("double", "echo", lambda _, __, samples: _task(samples), _doubled, lambda samples, reason: tuple(-1 for _ in samples)),
    PerBatch("again", "echo", lambda _, __, samples: _task(samples), _doubled),
    Barrier("sum", lambda _, __: [_task([3]), _task([4])], _summed, on_dead_letter=_nothing),
)


def test_the_batch_is_dropped_the_rest_continues_and_a_stage_may_ignore_it(tmp_path: Path) -> None:
    events: list[Progress] = []
    with running(tmp_path, workers=2, deliveries=2, retry_delay=0.05) as system, system.transport() as transport:
        engine = Engine(None, 2, transport, system.artifacts, events.append)
        state = engine.run(STAGES, Numbers(tuple(range(8))))
        assert list(state.samples) == [0, 4, -1, -1, 16, 20, 24, 28]
        assert state.total == 8
        last = {event.stage.name: event for event in events}
        assert {name: (event.done, event.total, event.dead_lettered) for name, event in last.items()} == {
            "double": (4, 4, 1),
            "again": (4, 4, 0),
            "sum": (2, 2, 1),
        }
        with pytest.raises(PoisonTask, match="2 tries.*the engine divided by zero"):
            engine.run((replace(STAGES[0], on_dead_letter=None),), Numbers((3, 5)))


# --- the recipe: what is left out, and where it is told ---


class _Poisoned(InPlace):
    """A transport on which some tasks are given up."""

    def __init__(self, artifacts: ArtifactStore, poison: Callable[[Task], bool]) -> None:
        super().__init__(artifacts)
        self.poison = poison

    def next(self) -> Manifest:
        """As ever, but for these."""
        if self.poison(self._waiting[0]):
            raise PoisonTask(self._waiting.pop(0).id, REASON)
        return super().next()


def _run(folder: Path, poison: Callable[[Task], bool], **sections: str) -> tuple[State, list[Event], dict[str, bytes]]:
    plan, artifacts = plan_of(write_spec(folder, **sections)), ArtifactStore(str(folder / "artifacts"))
    builder = EventBuilder(RECIPE.shown)
    events: list[Event] = []
    transport = _Poisoned(artifacts, poison)
    engine = Engine(plan, plan.spec.batch, transport, artifacts, lambda progress: events.append(builder.event(progress)))
    state = engine.run(RECIPE.stages, RECIPE.start(plan))
    return state, events, RECIPE.files(plan, state, artifacts)


@pytest.mark.parametrize("stage", ["refine", "generate", "ground", "regenerate", "score", "similarity", "vlm_review"])
def test_the_samples_of_a_lost_batch_are_no_pairs_and_the_report_says_why(tmp_path: Path, stage: str) -> None:
    lost = iter([True])
    sections = {"filter": "{review: vlm}", "stop": "{max_iterations: 1, min_pairs: 1}"}
    state, events, files = _run(tmp_path, lambda task: task.stage == stage and next(lost, False), **sections)
    verdicts = [sample.verdict for sample in state.iterations[0].samples]
    assert verdicts == [SET_ASIDE] * 4 + [KEPT] * 6
    assert dead_lettered(state) == [DeadLettered(phase=ITERATION, iteration=1, reason=REASON, lost={"samples": 4})]
    assert str(dead_lettered(state)[0]) == f"4 samples of iteration 1 lost: {REASON}"
    last = {event.stage: event for event in events if event.iteration == 1}
    assert [name for name, event in last.items() if event.dead_lettered] == [stage]
    assert "1 lost" in last[stage].note and "4 lost" in last["conclude"].outcome
    assert all(event.whole for event in last.values())
    figures = json.loads(files["report.json"])
    assert figures["iterations"][0]["removed_by"][SET_ASIDE] == 4
    assert figures["set_aside"] == [{"iteration": 1, "reason": REASON, "samples": 4, "pairs": 0}]
    page = re.sub(r"\s+", " ", files["report.html"].decode())
    assert f"Set aside in iteration 1 after several tries: 4 samples. {REASON}" in page


def test_pairs_whose_training_is_a_dead_letter_count_as_diverged(tmp_path: Path) -> None:
    lost = iter([True])
    state, events, files = _run(
        tmp_path, lambda task: task.stage == "train" and next(lost, False), stop="{max_iterations: 1, min_pairs: 1}"
    )
    attempt = state.iterations[0].attempt
    assert attempt is not None and len(attempt.trainings) == 10 and len(attempt.adapters) == 6
    assert dead_lettered(state) == [DeadLettered(phase=ITERATION, iteration=1, reason=REASON, lost={"trainings": 4})]
    assert any(event.note == "1 lost, 4 diverged" for event in events if event.stage == "train")
    assert json.loads(files["report.json"])["iterations"][0]["diverged"] == [REASON] * 4


def test_without_anything_to_train_on_the_run_ends_as_when_all_diverge(tmp_path: Path) -> None:
    state, _, files = _run(tmp_path, lambda task: task.stage == "train")
    assert state.stop_reason == "every training diverged"
    assert dead_lettered(state) == [DeadLettered(phase=ITERATION, iteration=1, reason=REASON, lost={"trainings": 10})]
    assert set(files) == {"report.json", "report.html"}


@pytest.mark.parametrize("stage", ["average", "stack", "paint_heldout", "score_heldout", "judge"])
def test_what_a_run_cannot_do_without_ends_it(tmp_path: Path, stage: str) -> None:
    with pytest.raises(PoisonTask, match="out of memory"):
        _run(tmp_path, lambda task: task.stage == stage, stop="{max_iterations: 1, min_pairs: 1}")
