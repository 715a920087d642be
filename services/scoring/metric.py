"""The interface of scorers: a metric, and numbers for a batch of pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sfumato.types import Image

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Metric:
    """The meaning of a scorer's numbers. ``version`` identifies the weights."""

    name: str
    low: float
    high: float
    higher_is_better: bool
    version: str


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """Pictures with a prompt each. Values that several scorers share (an encoder's features) are computed once."""

    images: Sequence[Image]
    prompts: Sequence[str]
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, compute: Callable[[], _Value]) -> _Value:
        """``compute()`` at the first call for ``key``, the same value afterwards."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


class Scorer(Protocol):
    """One metric."""

    metric: Metric

    def score(self, batch: ScoringBatch) -> list[float]:
        """One number a picture."""
        ...
