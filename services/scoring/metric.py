"""What every scorer is: a metric, and numbers for a batch of pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sfumato.types import Image

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Metric:
    """What a scorer's numbers mean. ``version`` names the weights, and changes with them."""

    name: str
    low: float
    high: float
    higher_is_better: bool
    version: str


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """Pictures with a prompt each. What several scorers need of it (a shared encoder's features) is computed once."""

    images: Sequence[Image]
    prompts: Sequence[str]
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, compute: Callable[[], _Value]) -> _Value:
        """``compute()`` the first time ``key`` is asked for, the same value ever after."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


class Scorer(Protocol):
    """One metric."""

    metric: Metric

    def score(self, batch: ScoringBatch) -> list[float]:
        """One number a picture."""
        ...
