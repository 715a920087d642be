"""A training that is killed in the middle of a step."""

from __future__ import annotations

from typing import TypeVar

from sfumato.vista.training.loop import Step, TrainingTask

TaskT = TypeVar("TaskT", bound=TrainingTask)


class Killed(BaseException):
    """Stands for a Ctrl-C in the middle of a step."""


def killed(task: TaskT, at: int) -> TaskT:
    """The same task, killed when step ``at`` begins."""
    backward = task.backward

    def kill(step: Step) -> float:
        if step.number == at:
            raise Killed
        return backward(step)

    task.backward = kill
    return task
