"""The methods by name. Only this module imports them: a method of sfumato is a folder beside this file and a line below.

Other packages can provide methods with an entry point of the group ``sfumato.recipes``, whose object is a `Recipe` and whose name is
the recipe's.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from orchestrator.recipes.recipe import Recipe
from sfumato.errors import InvalidInput
from sfumato.export.card import MethodCard

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
        InvalidInput: there is no such method.
    """
    if name in METHODS:
        return import_module(METHODS[name]).RECIPE
    for entry in entry_points(group=GROUP, name=name):
        return entry.load()
    raise InvalidInput("recipe", f"there is no method {name[:80]!r}.", hint=f"The methods: {', '.join(names())}.")


def names() -> list[str]:
    """The names of all methods."""
    return [*METHODS, *sorted(entry.name for entry in entry_points(group=GROUP) if entry.name not in METHODS)]


def cards() -> dict[str, MethodCard]:
    """The texts about each method in model cards, by its name."""
    found = {name: recipe_named(name).card for name in names()}
    return {name: card for name, card in found.items() if card is not None}


def services() -> tuple[str, ...]:
    """The services that any method sends tasks to."""
    return tuple(dict.fromkeys(service for name in names() for service in recipe_named(name).services))
