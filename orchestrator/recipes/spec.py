"""Sections of a run spec that methods share. A spec holds everything that the result of a run depends on; unknown keys are refused."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SpecSection(BaseModel):
    """A part of a spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class WeightsReference:
    """Marks a field that names weights: "vista", a folder (relative to the spec), or a name on the hub.

    ``part`` is the role of the weights; empty: the field is a mapping whose keys are the parts.
    """

    part: str = ""


class Prompts(SpecSection):
    """A text file with one prompt a line (relative to the spec; # begins a comment), and how many of its prompts are used."""

    file: Path
    count: int = Field(ge=1, le=10_000_000)
    # Sample i is painted from seed + i.
    seed: int = Field(ge=0, lt=2**62)


class Paint(SpecSection):
    """How pictures are painted; sizes in pixels."""

    steps: int = Field(default=20, ge=1, le=200)
    guidance: float = Field(default=1.0, ge=0, le=30)
    width: int = Field(default=64, ge=16, le=4096)
    height: int = Field(default=64, ge=16, le=4096)
    # The share of the steps, from the first on, in which advice acts; ArtAug uses 1.0.
    regional_steps: float = Field(default=1.0, gt=0, le=1)
    # Pixels over which a region fades out at its edges; ArtAug uses 0: binary masks.
    soft_edges: float = Field(default=0.0, ge=0, le=512)


class Ground(SpecSection):
    """The VLM: served by vLLM or, for Vista's, inside the worker."""

    backend: Literal["vllm", "transformers"] = "vllm"
    profile: Literal["vista", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"] = "vista"
    model: Annotated[str, WeightsReference("understanding")] = "vista"
    strategy: Literal["single-turn", "three-turn"] = "single-turn"
    # Refine ambiguous prompts with the VLM first (ArtAug, section 4.1.1).
    refine: bool = True


METRICS = ("clip", "aesthetic", "pickscore", "mps", "hpsv2", "nudenet")
Metric = Literal["clip", "aesthetic", "pickscore", "mps", "hpsv2", "nudenet"]


class Score(SpecSection):
    """The metrics of every picture. ``models`` names weights by metric; Vista's are used for the others."""

    metrics: tuple[Metric, ...] = ("clip", "aesthetic", "pickscore", "mps", "nudenet")
    models: Annotated[dict[Metric, str], WeightsReference()] = {}

    @model_validator(mode="after")
    def _distinct(self) -> Score:
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metrics: one is named twice")
        return self


class RunSpec(SpecSection):
    """The sections and fields of every method's spec."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    recipe: str
    # The generator: "vista", the folder of a diffusers pipeline (relative to the spec), or its name on the hub.
    model: Annotated[str, WeightsReference("generator")] = "vista"
    # The precision of the generator's weights for painting and training; a LoRA is always trained in float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    # Memory in GiB for a forward beside the weights, in painting and training. It determines the batch size of a forward,
    # and so the last bits of the result. null: the whole task in one forward.
    memory_gb: Annotated[float, Field(gt=0, le=4096)] | None = None
    # Samples in one task: fixed by the spec, so that the bytes of a result do not depend on the workers.
    batch: int = Field(default=8, ge=1, le=256)

    def unused(self) -> set[str]:
        """Sections without effect on the result of this spec, which are excluded from the run's id."""
        return set()


def references(kind: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], WeightsReference]]:
    """The fields of a spec's type that name weights: the keys that lead to each, and its mark."""
    for name, field in kind.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, WeightsReference):
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
