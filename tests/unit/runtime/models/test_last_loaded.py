"""One model is kept, and never two of them."""

from __future__ import annotations

import weakref

import pytest

from sfumato.errors import MissingWeights
from sfumato.runtime.models.last_loaded import LastLoaded


class Model:
    """Knows itself, as modules with hooks do."""

    def __init__(self) -> None:
        self.hook = self


def test_the_last_model_stays_and_another_is_loaded_when_it_is_gone() -> None:
    alive: list[weakref.ref[Model]] = []

    @LastLoaded
    def load(name: str) -> Model:
        assert all(model() is None for model in alive)
        if name == "none":
            raise MissingWeights("It is not there.")
        model = Model()
        alive.append(weakref.ref(model))
        return model

    assert load("a") is load("a")
    load("b")
    assert len(alive) == 2
    with pytest.raises(MissingWeights):
        load("none")
    load("b")
    assert len(alive) == 3
