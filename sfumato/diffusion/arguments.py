"""The arguments of a denoiser's forward by name, those in dictionaries (SDXL's added conditions) beside the others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

Nested = Mapping[str, tuple[str, ...]]
"""Which entries came from which dictionary."""


@cache
def _signature(kind: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(kind.forward)


def bound(kind: type[nn.Module], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by the names that the forward of a class of modules has for them."""
    arguments = dict(_signature(kind).bind(None, *args, **kwargs).arguments)
    del arguments["self"]
    return arguments


def flatten(arguments: dict[str, Any]) -> tuple[dict[str, Any], Nested]:
    """Arguments with the entries of dictionaries beside them, and which entries came from which dictionary."""
    nested = {name: tuple(value) for name, value in arguments.items() if isinstance(value, dict)}
    flat = {name: value for name, value in arguments.items() if name not in nested}
    for name in nested:
        flat |= arguments[name]
    return flat, nested


def unflatten(flat: Mapping[str, Any], nested: Nested) -> dict[str, Any]:
    """The inverse of `flatten`."""
    inner = {entry for entries in nested.values() for entry in entries}
    arguments = {name: value for name, value in flat.items() if name not in inner}
    return arguments | {name: {entry: flat[entry] for entry in entries} for name, entries in nested.items()}
