"""A process keeps one model loaded per loader."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

Key = ParamSpec("Key")
Model = TypeVar("Model")


class LastLoaded(Generic[Key, Model]):
    """A decorator of a loader that keeps its last model: the same arguments return the same object, other arguments first release it.

    Not thread-safe: call it in one thread or through one `EngineQueue`.
    """

    def __init__(self, load: Callable[Key, Model]) -> None:
        self._load = load
        self._loaded: tuple[object, Model] | None = None

    def __call__(self, *args: Key.args, **kwargs: Key.kwargs) -> Model:
        """The model of these arguments. Raises what the loader raises; then no model is kept."""
        key = (args, tuple(sorted(kwargs.items())))
        if self._loaded is None or self._loaded[0] != key:
            if self._loaded is not None:
                self._loaded = None
                gc.collect()  # modules and their hooks form reference cycles
            self._loaded = (key, self._load(*args, **kwargs))
        return self._loaded[1]
