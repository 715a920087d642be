"""What a process keeps loaded: one model, for whoever in it asks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

Key = ParamSpec("Key")
Model = TypeVar("Model")


class LastLoaded(Generic[Key, Model]):
    """A loader's last model: the same arguments give the same object, others load theirs in its place, never beside it.

    As a decorator of the loader. All who use it do so in one thread, or in one lane.
    """

    def __init__(self, load: Callable[Key, Model]) -> None:
        self._load = load
        self._loaded: tuple[object, Model] | None = None

    def __call__(self, *args: Key.args, **kwargs: Key.kwargs) -> Model:
        """The model of these arguments. Raises what loading raises; nothing is loaded then."""
        key = (args, tuple(sorted(kwargs.items())))
        if self._loaded is None or self._loaded[0] != key:
            if self._loaded is not None:
                self._loaded = None
                gc.collect()  # modules and their hooks know each other: only this frees them now
            self._loaded = (key, self._load(*args, **kwargs))
        return self._loaded[1]
