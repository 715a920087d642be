"""The run spec: everything a run's result depends on, in one YAML file. Unknown keys are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from orchestrator.spool import spooled
from sfumato.errors import InvalidInput
from sfumato.runtime.tasks import canonical

MANY = 10_000
"""Prompts that are held in memory; more are read from a file as they are needed."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompts(_Strict):
    """A text file with one prompt a line (relative to the spec; # begins a comment), and how many of its prompts are used."""

    file: Path
    count: int = Field(ge=1, le=10_000_000)
    # Sample i is painted from seed + i.
    seed: int = Field(ge=0, lt=2**62)


class HeldOut(Prompts):
    """Prompts that are never used for pairs: every fused model paints them from the same seeds.

    ``ceiling`` is a file with the same scenes, line by line, in words that ask outright for what the loop is to teach: the base
    model's answer to it is what the tuned model's answer to the plain prompt could come to.
    """

    count: int = Field(ge=1, le=100_000)
    ceiling: Path | None = None


class Paint(_Strict):
    """How pictures are painted; sizes in pixels."""

    steps: int = Field(default=20, ge=1, le=200)
    guidance: float = Field(default=1.0, ge=0, le=30)
    width: int = Field(default=64, ge=16, le=4096)
    height: int = Field(default=64, ge=16, le=4096)
    # The share of the steps, from the first on, in which advice acts. 1.0 is the paper's.
    regional_steps: float = Field(default=1.0, gt=0, le=1)
    # Pixels over which a region fades out at its edges. 0 is the paper's: in the box or not.
    soft_edges: float = Field(default=0.0, ge=0, le=512)


class Ground(_Strict):
    """Who looks at the pictures: a VLM served by vLLM, or (for Vista's) the same model inside the worker."""

    backend: Literal["vllm", "transformers"] = "vllm"
    profile: Literal["vista", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"] = "vista"
    # "vista", the folder of a model (relative to the spec), or its name on the hub.
    model: str = "vista"
    strategy: Literal["single-turn", "three-turn"] = "single-turn"
    # Let the VLM make ambiguous prompts definite first (paper, section 4.1.1).
    refine: bool = True


METRICS = ("clip", "aesthetic", "pickscore", "mps", "hpsv2", "nudenet")
Metric = Literal["clip", "aesthetic", "pickscore", "mps", "hpsv2", "nudenet"]


class Score(_Strict):
    """What is measured on every picture. ``clip`` and ``aesthetic`` decide, ``nudenet`` can refuse, the others are reported.

    ``models`` names weights by metric, as a folder (relative to the spec) or a name on the hub; what is not named is Vista's.
    """

    metrics: tuple[Metric, ...] = ("clip", "aesthetic", "pickscore", "mps", "nudenet")
    models: dict[Metric, str] = {}

    @model_validator(mode="after")
    def _decisive(self) -> Score:
        if not {"clip", "aesthetic"} <= set(self.metrics):
            raise ValueError("metrics: clip and aesthetic are needed, for they decide which pairs are kept")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metrics: one is named twice")
        return self


class Filter(_Strict):
    """ArtAug section 3.2: which pairs are kept, and who looks at them before they are trained."""

    # How much the aesthetic score must rise at least ("clear improvement"); at 0 any rise will do.
    min_gain: float = Field(default=0.0, ge=0, le=9)
    # vlm: an A/B judge, asked in both orders. human: the run waits for `sfumato review`. vlm+human: one, then the other.
    review: Literal["none", "vlm", "human", "vlm+human"] = "none"


class Train(_Strict):
    """ArtAug section 3.3 for every kept pair; ``together`` pairs share the forwards of one task."""

    # Of more pairs, those whose aesthetic score rose most.
    pairs: int = Field(default=12, ge=1, le=10_000)
    # "auto": the smallest of 4, 8 and 16 that converges on the training picture.
    rank: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 8
    learning_rate: float = Field(default=1e-3, gt=0, lt=1)
    batch: int = Field(default=4, ge=1, le=256)
    steps_before: int = Field(default=120, ge=1, le=100_000)
    steps_after: int = Field(default=120, ge=1, le=100_000)
    together: int = Field(default=4, ge=1, le=64)


class Joint(_Strict):
    """One adapter for all kept pairs, naively trained on X' (ArtAug section 4.3.2): Table 2's other side where ``compare`` is ``joint``.

    Rank and learning rate are those of ``train``. A step's ``pictures`` go through the model ``together`` by together, in one process
    or in as many at the same time as a power of two divides a step into; the adapter's bytes do not depend on how many there are.
    """

    steps: int = Field(default=240, ge=1, le=100_000)
    pictures: int = Field(default=16, ge=1, le=4096)
    together: int = Field(default=4, ge=1, le=256)

    @model_validator(mode="after")
    def _whole(self) -> Joint:
        if self.pictures % self.together:
            raise ValueError(f"together: {self.together} pictures of a forward do not divide the {self.pictures} of a step")
        return self


class Fuse(_Strict):
    """ArtAug section 3.4: theta + alpha * mean; ``rank`` compresses the exact mean, ``null`` keeps all of it.

    With several values for ``alpha``, the ``tune`` prompts decide: of those that lose no more than ``clip_loss`` of the base
    model's CLIP score, the one with the highest aesthetic score.
    """

    alpha: tuple[Annotated[float, Field(gt=0, le=10)], ...] = Field(default=(1.0,), min_length=1, max_length=16)
    rank: int | None = Field(default=None, ge=1, le=2048)
    clip_loss: float = Field(default=0.2, ge=0, le=100)

    @field_validator("alpha", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else value


class Stop(_Strict):
    """When the loop ends: fewer pairs survive filter and review than ``min_pairs``, or ``max_iterations`` are done."""

    max_iterations: int = Field(default=8, ge=1, le=64)
    min_pairs: int = Field(default=4, ge=1, le=10_000)


class RunSpec(_Strict):
    """One run of a recipe."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    recipe: Literal["artaug"] = "artaug"
    # "vista", the folder of a diffusers pipeline (relative to the spec), or its name on the hub.
    model: str = "vista"
    # The generator's weights while they paint and are trained on; a LoRA is always trained in float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    # GiB that a forward may take beside the weights, for painting and training; it decides how much goes through the model at once,
    # and so the last bits of the result. null: as much as the task holds.
    memory_gb: Annotated[float, Field(gt=0, le=4096)] | None = None
    # Samples in one task: fixed here, so that the bytes of a result do not depend on who did what when.
    batch: int = Field(default=8, ge=1, le=256)
    prompts: Prompts
    paint: Paint = Paint()
    ground: Ground = Ground()
    score: Score = Score()
    filter: Filter = Filter()
    train: Train = Train()
    fuse: Fuse = Fuse()
    stop: Stop = Stop()
    # Prompts on which alpha is chosen: neither used for pairs nor reported. Needed where there is a choice.
    tune: Prompts | None = None
    evaluate: HeldOut
    # Train the first iteration's pairs naively as well, on X' alone, and compare (the paper's Table 2): each pair by itself (true), or one
    # adapter on all of them (joint).
    compare: bool | Literal["joint"] = False
    joint: Joint = Joint()

    @model_validator(mode="after")
    def _choice(self) -> RunSpec:
        if self.tune is None and (len(self.fuse.alpha) > 1 or self.compare):
            raise ValueError("tune: prompts are needed to choose alpha on, and for the comparison with naive training")
        if self.compare == "joint" and self.train.rank == "auto":
            raise ValueError("train.rank: joint training needs a number; the test of convergence is one of single pairs")
        if self.tune is not None and self.tune.count > 100_000:
            raise ValueError("tune.count: every model that is tried paints them; no more than 100000 are allowed")
        return self


def load_spec(path: Path) -> RunSpec:
    """The spec in a YAML file, its paths made relative to the file's folder.

    Raises:
        InvalidInput: no such file, not YAML, an unknown key, a value out of range: every fault named by its key.
    """
    if not path.is_file():
        raise InvalidInput("spec", f"there is no file {path}.", hint="See configs/ for examples.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = RunSpec.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput("spec", f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(part) for part in fault['loc']) or 'spec'}: {fault['msg']}" for fault in error.errors())
        raise InvalidInput("spec", f"{path}: {faults}.") from error
    return _anchored(spec, path.parent)


def _anchored(spec: RunSpec, here: Path) -> RunSpec:
    """The spec with its files and folders made relative to ``here``."""

    def model(name: str) -> str:
        return str(here / name) if (here / name).is_dir() else name

    def prompts(part: Prompts | None) -> Prompts | None:
        return part and part.model_copy(update={"file": here / part.file})

    ceiling = spec.evaluate.ceiling and here / spec.evaluate.ceiling
    return spec.model_copy(
        update={
            "model": model(spec.model),
            "prompts": prompts(spec.prompts),
            "tune": prompts(spec.tune),
            "evaluate": spec.evaluate.model_copy(update={"file": here / spec.evaluate.file, "ceiling": ceiling}),
            "ground": spec.ground.model_copy(update={"model": model(spec.ground.model)}),
            "score": spec.score.model_copy(update={"models": {name: model(ref) for name, ref in spec.score.models.items()}}),
        }
    )


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Every prompt of a run: those pairs are made from, those alpha is chosen on, those held out and their ceiling."""

    train: Sequence[str]
    tune: Sequence[str]
    heldout: Sequence[str]
    ceiling: Sequence[str]


def read_prompt_sets(spec: RunSpec) -> PromptSets:
    """The prompts in the spec's files.

    Raises:
        InvalidInput: a file is missing or too short, or a prompt is in two sets that must not share any.
    """
    heldout = tuple(read_prompts(spec.evaluate.file, spec.evaluate.count, "evaluate"))
    ceiling = tuple(read_prompts(spec.evaluate.ceiling, spec.evaluate.count, "evaluate.ceiling")) if spec.evaluate.ceiling else ()
    sets = PromptSets(
        read_prompts(spec.prompts.file, spec.prompts.count, "prompts"),
        tuple(read_prompts(spec.tune.file, spec.tune.count, "tune")) if spec.tune else (),
        heldout,
        ceiling,
    )
    for field, others in (("evaluate", sets.train), ("evaluate", sets.tune), ("tune", sets.train)):
        shared = set(sets.tune if field == "tune" else sets.heldout).intersection(others)
        if shared:
            raise InvalidInput(field, f"{len(shared)} of its prompts are used elsewhere in the run, such as {min(shared)!r}.")
    return sets


def read_prompts(file: Path, count: int, field: str) -> Sequence[str]:
    """The first ``count`` prompts of a file; empty lines and lines that begin with # do not count. Very many are not held in memory.

    Raises:
        InvalidInput: named after ``field``: no such file, not text, or too short.
    """
    found = held(prompts_in(file, count, field), count)
    if len(found) < count:
        raise InvalidInput(f"{field}.count", f"{file} has {len(found)} prompts, the run asks for {count}.")
    return found


def prompts_in(file: Path, count: int | None, field: str) -> Iterator[str]:
    """The first ``count`` prompts of a file, or as many as it has.

    Raises:
        InvalidInput: named after ``field``: no such file, or not text.
    """
    if not file.is_file():
        raise InvalidInput(f"{field}.file", f"there is no file {file}.", hint="Give a text file with one prompt a line.")
    try:
        with file.open(encoding="utf-8") as lines:
            yield from islice((prompt for line in lines if (prompt := line.strip()) and not prompt.startswith("#")), count)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{field}.file", f"{file} is not UTF-8 text.") from error


def held(prompts: Iterable[str], count: int) -> Sequence[str]:
    """About ``count`` prompts, in memory if they are not very many."""
    return tuple(prompts) if count <= MANY else spooled(prompts)


def run_id(spec: RunSpec, prompts: PromptSets, models: dict[str, str]) -> str:
    """The run's name and a hash of all it depends on: the same run again is the same run, and goes on where it stood."""
    places: dict[str, bool | set[str]] = {
        "model": True,
        "prompts": {"file"},
        "tune": {"file"},
        "evaluate": {"file", "ceiling"},
        "ground": {"model"},
        "score": {"models"},
    }
    if spec.compare != "joint":
        places["joint"] = True  # nothing comes of it
    sets = {"train": list(prompts.train), "tune": prompts.tune, "heldout": prompts.heldout, "ceiling": prompts.ceiling}
    content = {"spec": spec.model_dump(mode="json", exclude=places), "prompts": sets, "models": models}
    return f"{spec.name}-{hashlib.sha256(canonical(content)).hexdigest()[:10]}"
