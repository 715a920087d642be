"""Adapters that requests add on top of a version: loaded on first use, the least recently used are unloaded when memory is short."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from services.inference.painting.weights import LoraFactors
from sfumato.errors import Busy, InvalidInput, NotFound


@dataclass(eq=False)
class _LoadedAdapter:
    factors: LoraFactors
    users: int = 0


class Extras:
    """A cache of at most ``budget`` bytes of adapters; adapters in use are never unloaded. Thread-safe."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._extras: OrderedDict[str, _LoadedAdapter] = OrderedDict()  # the least recently used first
        self._left: set[str] = set()  # those that were unloaded
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The loaded adapters, the least recently used first."""
        with self._lock:
            return tuple(self._extras)

    def put(self, name: str, load: Callable[[], LoraFactors]) -> None:
        """Add the adapter that ``load`` returns, unless the name is loaded; unload others when it needs their room.

        Raises:
            InvalidInput: it is larger than the whole budget.
            Busy: the adapters in use leave no room for it.
        """
        with self._lock:
            if name in self._extras:
                self._extras.move_to_end(name)
                return
        factors = load()
        if factors.bytes > self._budget:
            words = f"{name} takes {factors.bytes} bytes, and all such adapters together may take {self._budget}."
            raise InvalidInput("model", words, hint="Compress it to a lower rank: sfumato lora compress.")
        with self._lock:
            for other in [other for other, extra in self._extras.items() if not extra.users]:
                if self._taken() + factors.bytes > self._budget:
                    del self._extras[other]
                    self._left.add(other)
            if self._taken() + factors.bytes > self._budget:
                raise Busy(f"Adapters in use leave no room for {name}.", hint="Try again in a moment.", retry_after=1.0)
            self._extras[name] = _LoadedAdapter(factors)

    def _taken(self) -> int:
        return sum(extra.factors.bytes for extra in self._extras.values())

    @contextmanager
    def used(self, wanted: Sequence[tuple[str, float]]) -> Iterator[tuple[tuple[LoraFactors, float], ...]]:
        """The adapters with their weights; they stay loaded while the context is open.

        Raises:
            NotFound: one was never loaded.
            Busy: one was unloaded to make room for others.
        """
        with self._lock:
            missing = [name for name, _ in wanted if name not in self._extras]
            if self._left.intersection(missing):
                raise Busy(f"The adapter {missing[0]} was unloaded for others.", hint="Try again in a moment.", retry_after=1.0)
            if missing:
                raise NotFound(f"The adapter {missing[0]} is not loaded.", hint="Load it, or leave it out.")
            taken = [self._extras[name] for name, _ in wanted]
            for (name, _), extra in zip(wanted, taken, strict=True):
                self._extras.move_to_end(name)
                extra.users += 1
        try:
            yield tuple((extra.factors, weight) for extra, (_, weight) in zip(taken, wanted, strict=True))
        finally:
            with self._lock:
                for extra in taken:
                    extra.users -= 1
