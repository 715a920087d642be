"""The one model that a process keeps loaded, shared by its calls and its tasks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

Key = ParamSpec("Key")
Model = TypeVar("Model")


class LastLoaded(Generic[Key, Model]):
    """Decorates a loader and keeps its last model: the same arguments return the same object, others replace it.

    The old model is freed before the new one is loaded, so there are never two in memory. Call it from one thread, or through one lane.
    """

    def __init__(self, load: Callable[Key, Model]) -> None:
        self._load = load
        self._loaded: tuple[object, Model] | None = None

    def __call__(self, *args: Key.args, **kwargs: Key.kwargs) -> Model:
        """The model for these arguments. An exception of the loader is passed on; no model is loaded then."""
        key = (args, tuple(sorted(kwargs.items())))
        if self._loaded is None or self._loaded[0] != key:
            if self._loaded is not None:
                self._loaded = None
                gc.collect()  # modules and their hooks refer to each other: only a collection frees them now
            self._loaded = (key, self._load(*args, **kwargs))
        return self._loaded[1]
