"""What a picture in work will look like: the clean latents that a step's prediction implies, decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.families.family import Family
from sfumato.diffusion.parameterization import FlowMatching
from sfumato.types import Image


@dataclass(frozen=True, slots=True)
class Previews:
    """Every ``every`` of a picture's steps ``tell`` is told the request's index, its steps done and in all, and the picture."""

    every: int
    tell: Callable[[int, int, int, Image], object]


class Watch:
    """The last step of a scheduler, as it was asked for and answered."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._clean: Callable[[], Tensor] | None = None

    def saw(self, prediction: Tensor, timestep: Any, sample: Tensor, answer: Sequence[Tensor]) -> None:
        """Remember a step; nothing is computed yet."""
        scheduler: Any = self._family.pipeline.scheduler  # pyright: ignore[reportAttributeAccessIssue]
        parameterization = self._family.parameterization
        if len(answer) > 1:  # schedulers that know it say it
            self._clean = lambda: answer[1]
        elif isinstance(parameterization, FlowMatching):
            level = scheduler.sigmas[scheduler.step_index - 1]
            self._clean = lambda: parameterization.clean(sample, prediction, level.reshape(1))
        elif float(scheduler.init_noise_sigma) == 1:
            level = torch.as_tensor(timestep).long().reshape(1)
            self._clean = lambda: parameterization.clean(sample, prediction, level)
        else:  # its latents are scaled in a way of its own: show them as they are
            self._clean = lambda: answer[0]

    def clean(self) -> Tensor:
        """The clean latents ``[batch, ...]`` that the last step's prediction implies."""
        assert self._clean is not None
        return self._clean()


@contextmanager
def watching(family: Family) -> Iterator[Watch]:
    """While open, the steps of the family's scheduler are seen; they compute what they always do."""
    scheduler: Any = family.pipeline.scheduler  # pyright: ignore[reportAttributeAccessIssue]
    watch, step = Watch(family), scheduler.step

    @wraps(step)
    def seen(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        before = sample.clone()  # some schedulers write into it
        answer = step(model_output, timestep, sample, *args, **kwargs)
        watch.saw(model_output, timestep, before, answer)
        return answer

    scheduler.step = seen
    try:
        yield watch
    finally:
        del scheduler.step
