"""The methods by name. Only this module imports them: a method of sfumato is a folder beside this file and a line below.

Other packages can provide methods with an entry point of the group ``sfumato.recipes``, whose object is a `Recipe` and whose name is
the recipe's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from orchestrator.recipes.recipe import Recipe
from sfumato.errors import InvalidInput
from sfumato.export.card import MethodCard

log = logging.getLogger(__name__)

METHODS = {
    "artaug": "orchestrator.recipes.artaug",
}
"""Name -> the module whose ``RECIPE`` it is. The first one is the default."""
DEFAULT = next(iter(METHODS))
GROUP = "sfumato.recipes"


@cache
def recipe_named(name: str) -> Recipe[Any, Any, Any]:
    """The method of this name.

    Raises:
        InvalidInput: there is none, or another package's cannot be loaded.
    """
    if name in METHODS:
        return import_module(METHODS[name]).RECIPE
    for entry in entry_points(group=GROUP, name=name):
        try:
            return entry.load()
        except Exception as error:  # whatever another package may raise while it is imported
            raise InvalidInput("recipe", f"the method {name} cannot be loaded from {entry.value}: {error!r}.") from error
    raise InvalidInput("recipe", f"there is no method {name[:80]!r}.", hint=f"The methods: {', '.join(names())}.")


def names() -> list[str]:
    """The names of all methods."""
    return [*METHODS, *sorted(entry.name for entry in entry_points(group=GROUP) if entry.name not in METHODS)]


def cards() -> dict[str, MethodCard]:
    """What model cards say about each method, by its name."""
    return {recipe.name: recipe.card for recipe in _loadable() if recipe.card is not None}


def services() -> tuple[str, ...]:
    """The services that any method sends tasks to."""
    return tuple(dict.fromkeys(service for recipe in _loadable() for service in recipe.services))


def _loadable() -> Iterator[Recipe[Any, Any, Any]]:
    for name in names():
        try:
            yield recipe_named(name)
        except InvalidInput as error:
            log.warning("%s", error)
