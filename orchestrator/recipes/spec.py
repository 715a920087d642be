"""Sections of a run spec that methods share. A spec holds everything that the result of a run depends on; unknown keys are refused."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of a spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class ModelReference:
    """Marks a field that names weights: "vista", a folder (relative to the spec), or a name on the hub.

    ``part`` is what the weights are for; empty: the field is a mapping, whose keys are the parts.
    """

    part: str = ""


class Prompts(Section):
    """A text file with one prompt a line (relative to the spec; # begins a comment), and how many of its prompts are used."""

    file: Path
    count: int = Field(ge=1, le=10_000_000)
    # Sample i is painted from seed + i.
    seed: int = Field(ge=0, lt=2**62)


class Paint(Section):
    """How pictures are painted; sizes in pixels."""

    steps: int = Field(default=20, ge=1, le=200)
    guidance: float = Field(default=1.0, ge=0, le=30)
    width: int = Field(default=64, ge=16, le=4096)
    height: int = Field(default=64, ge=16, le=4096)
    # The share of the steps, from the first on, in which advice acts. 1.0 is ArtAug's.
    regional_steps: float = Field(default=1.0, gt=0, le=1)
    # Pixels over which a region fades out at its edges. 0 is ArtAug's: in the box or not.
    soft_edges: float = Field(default=0.0, ge=0, le=512)


class Ground(Section):
    """Which VLM looks at the pictures: one served by vLLM, or (for Vista's) the same model inside the worker."""

    backend: Literal["vllm", "transformers"] = "vllm"
    profile: Literal["vista", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"] = "vista"
    model: Annotated[str, ModelReference("understanding")] = "vista"
    strategy: Literal["single-turn", "three-turn"] = "single-turn"
    # Let the VLM make ambiguous prompts definite first (ArtAug, section 4.1.1).
    refine: bool = True


METRICS = ("clip", "aesthetic", "pickscore", "mps", "hpsv2", "nudenet")
Metric = Literal["clip", "aesthetic", "pickscore", "mps", "hpsv2", "nudenet"]


class Score(Section):
    """What is measured on every picture. ``models`` names weights by metric; Vista's are used for a metric that is not named."""

    metrics: tuple[Metric, ...] = ("clip", "aesthetic", "pickscore", "mps", "nudenet")
    models: Annotated[dict[Metric, str], ModelReference()] = {}

    @model_validator(mode="after")
    def _distinct(self) -> Score:
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metrics: one is named twice")
        return self


class RunSpec(Section):
    """What the spec of every method has."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    recipe: str
    # The generator: "vista", the folder of a diffusers pipeline (relative to the spec), or its name on the hub.
    model: Annotated[str, ModelReference("generator")] = "vista"
    # The generator's weights while they paint and are trained on; a LoRA is always trained in float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    # GiB that a forward may take beside the weights, for painting and training; it decides how much goes through the model at once,
    # and so the last bits of the result. null: as much as the task holds.
    memory_gb: Annotated[float, Field(gt=0, le=4096)] | None = None
    # Samples in one task: fixed here, so that the bytes of a result do not depend on which worker did what when.
    batch: int = Field(default=8, ge=1, le=256)

    def unused(self) -> set[str]:
        """Sections that have no effect on the result of this spec, and so none on the run's id."""
        return set()


def references(kind: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ModelReference]]:
    """The fields of a spec's type that name weights: the keys that lead to each, and its mark."""
    for name, field in kind.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, ModelReference):
                yield (*path, name), mark
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from references(part, (*path, name))


def nested_exclusion(paths: Iterator[tuple[str, ...]]) -> dict[str, Any]:
    """Pydantic's ``exclude`` for fields given by the keys that lead to each."""
    excluded: dict[str, Any] = {}
    for *sections, last in paths:
        inner = excluded
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = True
    return excluded
