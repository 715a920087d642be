"""The plan of a run: the input of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.recipes.models import Model
from orchestrator.recipes.spec import RunSpec

SpecT = TypeVar("SpecT", bound=RunSpec)


@dataclass(frozen=True, slots=True)
class Plan(Generic[SpecT]):
    """A spec, its prompts by the name of their set, and its models by their part of the run."""

    spec: SpecT
    inputs: Mapping[str, Sequence[str]]
    models: Mapping[str, Model]
