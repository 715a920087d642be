"""Parses a request's ``model``: ``vista``, ``vista@canary``, a version's id, each with adapters on top: ``vista+style-x:0.6``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sfumato.errors import InvalidInput, NotFound
from sfumato.registry.records import ALIAS, PREFIX

MAX_EXTRAS = 8
MAX_WEIGHT = 4.0
"""The largest multiple of an adapter's update; beyond it pictures degenerate."""
MAX_NAME = 400
HINT = "Such as vista, vista@production, vista+style-x:0.6, or a version's id; see /v1/models."


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A parsed model name: ``alias`` of the served base (empty: the default alias), or ``version``, the beginning of an id.

    ``extras`` are aliases or ids of registered adapters, with the factors of their updates.
    """

    alias: str = ""
    version: str = ""
    extras: tuple[tuple[str, float], ...] = ()


def read_name(text: str, base: str) -> ModelReference:
    """Read ``BASE[@ALIAS][+ADAPTER[:WEIGHT]]...`` or ``ID[+...]``; an empty text is ``BASE``.

    Args:
        text: the client's text.
        base: name of the served base model, which may contain slashes.

    Raises:
        NotFound: the text is not a model's name.
        InvalidInput: an adapter's weight is not a number from -4 to 4, or there are more than 8 adapters.
    """
    name, *extras = text.strip()[: MAX_NAME + 1].split("+")
    if len(text) > MAX_NAME:
        raise NotFound(f"No model is called {name[:80]!r}...", hint=HINT)
    if len(extras) > MAX_EXTRAS:
        raise InvalidInput("model", f"{len(extras)} adapters are more than {MAX_EXTRAS}.", hint="Merge some: sfumato lora stack.")
    added = tuple(_extra(part) for part in extras)
    if name in ("", base):
        return ModelReference(extras=added)
    head, _, alias = name.rpartition("@")
    if head == base and ALIAS.fullmatch(alias):
        return ModelReference(alias=alias, extras=added)
    if PREFIX.fullmatch(name):
        return ModelReference(version=name, extras=added)
    raise NotFound(f"No model is called {name[:80]!r}.", hint=HINT)


def _extra(part: str) -> tuple[str, float]:
    name, colon, number = part.partition(":")
    if not (ALIAS.fullmatch(name) or PREFIX.fullmatch(name)):
        raise NotFound(f"No adapter is called {name[:80]!r}.", hint=HINT)
    try:
        weight = float(number) if colon else 1.0
    except ValueError:
        weight = math.nan
    if not abs(weight) <= MAX_WEIGHT:
        raise InvalidInput("model", f"the weight {number[:20]!r} of {name} is no number from -4 to 4.", hint=HINT)
    return name, weight
