"""The questions of a run that wait for a person, and the answers. Needs the run's plan and artifacts, but no service."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.engine.stages import Progress, Waiting
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.recipe import Recipe
from orchestrator.runs.replay import NotDone, replay
from sfumato.errors import InvalidInput, WrongState
from sfumato.runs.records import Answer, Question
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.versions import libraries
from sfumato.runtime.tasks import Output, Task, perform
from sfumato.texts import normalised


def waiting_questions(recipe: Recipe[Any, Any, Any], plan: Plan[Any], name: str, artifacts: ArtifactStore) -> list[tuple[Task, Question]]:
    """The questions that wait for a person, each with its task, in the order of the samples; none if all are answered.

    Raises:
        InvalidInput: runs of this spec have no human review.
        WrongState: the run has not reached its review yet.
    """
    reason = recipe.review(plan.spec)
    if reason:
        raise InvalidInput("run", f"{name} has no human review: {reason}.")
    section, answered = None, False

    def notice(progress: Progress) -> None:
        nonlocal section, answered
        if (progress.phase, progress.iteration) != section:
            section, answered = (progress.phase, progress.iteration), False
        answered |= progress.stage.name in asking and progress.whole and progress.total > 0

    asking = {stage.name for stage in recipe.steps if getattr(stage, "asks", None) is not None}
    try:
        replay(recipe, plan, artifacts, notice)
    except Waiting as waiting:
        assert waiting.stage.asks is not None
        asked = waiting.stage.asks(waiting.state, waiting.tasks)
        questions = [replace(question, phase=waiting.phase, iteration=waiting.iteration) for question in asked]
        return list(zip(waiting.tasks, questions, strict=True))
    except NotDone:
        if not answered:
            raise WrongState(
                f"The run {name} has not reached its review yet.", hint=f"Let it continue: sfumato run --resume {name}"
            ) from None
    return []


def store_answer(task: Task, artifacts: ArtifactStore, accepted: bool, reason: str = "") -> Answer:
    """Store the answer to a question, and return the valid one: the first that was stored."""
    answer = Output([{"accepted": accepted, "reason": "" if accepted else normalised(reason)}])
    manifest = perform(task, lambda _, __: answer, artifacts, libraries())
    return Answer(task.id, **manifest.values[0])
