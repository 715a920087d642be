"""The training objectives by name: a new objective is one file in this package and one entry here."""

from __future__ import annotations

from services.trainer.objectives.differential import DIFFERENTIAL
from services.trainer.objectives.joint import JOINT
from services.trainer.objectives.naive import NAIVE
from services.trainer.objectives.objective import Objective
from services.trainer.pairs import PAIR_TASK, PairObjective
from sfumato.errors import InvalidInput

# The first objective of a kind of task is that task's default.
LISTED: tuple[Objective, ...] = (
    DIFFERENTIAL,
    NAIVE,
    JOINT,
)
OBJECTIVES = {objective.name: objective for objective in LISTED}


def objective_of(task: str, name: str | None = None) -> Objective:
    """The objective of a kind of task; the kind's default where no name is given.

    Raises:
        InvalidInput: tasks of this kind have no such objective.
    """
    able = {objective.name: objective for objective in OBJECTIVES.values() if objective.task == task}
    if name is None:
        return next(iter(able.values()))
    if name not in able:
        raise InvalidInput("objective", f"{name!r} is unknown.", hint=f"Known objectives: {', '.join(able)}.")
    return able[name]


def pair_objective(name: str) -> PairObjective:
    """An objective that trains one adapter for each pair.

    Raises:
        InvalidInput: there is none of this name.
    """
    objective = objective_of(PAIR_TASK, name)
    assert isinstance(objective, PairObjective)
    return objective
