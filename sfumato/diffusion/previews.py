"""Previews of a picture in progress: the clean latents that a step's prediction implies, decoded."""

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
    """After every ``every`` steps of a picture, ``tell`` is called with the request's index, its steps done and in all, and the picture."""

    every: int
    tell: Callable[[int, int, int, Image], object]


class Watch:
    """The arguments and the answer of a scheduler's last step."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._clean: Callable[[], Tensor] | None = None

    def saw(self, prediction: Tensor, timestep: Any, sample: Tensor, answer: Sequence[Tensor]) -> None:
        """Remember a step; nothing is computed until `clean` is called."""
        scheduler: Any = self._family.pipeline.scheduler  # pyright: ignore[reportAttributeAccessIssue]
        parameterization = self._family.parameterization
        if len(answer) > 1:  # schedulers that compute it return it
            self._clean = lambda: answer[1]
        elif isinstance(parameterization, FlowMatching):
            level = scheduler.sigmas[scheduler.step_index - 1]
            self._clean = lambda: parameterization.clean(sample, prediction, level.reshape(1))
        elif float(scheduler.init_noise_sigma) == 1:
            level = torch.as_tensor(timestep).long().reshape(1)
            self._clean = lambda: parameterization.clean(sample, prediction, level)
        else:  # the scheduler scales its latents in another way: show them unchanged
            self._clean = lambda: answer[0]

    def clean(self) -> Tensor:
        """The clean latents ``[batch, ...]`` that the last step's prediction implies."""
        assert self._clean is not None
        return self._clean()


@contextmanager
def watching(family: Family) -> Iterator[Watch]:
    """While open, the steps of the family's scheduler are recorded; their results do not change."""
    scheduler: Any = family.pipeline.scheduler  # pyright: ignore[reportAttributeAccessIssue]
    watch, step = Watch(family), scheduler.step

    @wraps(step)
    def seen(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        before = sample.clone()  # some schedulers modify it
        answer = step(model_output, timestep, sample, *args, **kwargs)
        watch.saw(model_output, timestep, before, answer)
        return answer

    scheduler.step = seen
    try:
        yield watch
    finally:
        del scheduler.step
