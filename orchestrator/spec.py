"""The run spec: everything a run's result depends on, in one YAML file. Unknown keys are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sfumato.errors import InvalidInput
from sfumato.runtime.tasks import canonical


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompts(_Strict):
    """A text file with one prompt a line (relative to the spec), and how many of its first lines are used."""

    file: Path
    count: int = Field(ge=1, le=100_000)
    # Sample i is painted from seed + i.
    seed: int = Field(ge=0, lt=2**62)


class Paint(_Strict):
    """How pictures are painted; sizes in pixels."""

    steps: int = Field(default=20, ge=1, le=200)
    guidance: float = Field(default=1.0, ge=0, le=30)
    width: int = Field(default=64, ge=16, le=4096)
    height: int = Field(default=64, ge=16, le=4096)


class Ground(_Strict):
    """Who looks at the pictures: a VLM served by vLLM, or the same model inside the worker."""

    backend: Literal["vllm", "transformers"] = "vllm"
    profile: str = "vista"


class Score(_Strict):
    """What is measured on every picture. ``aesthetic`` and ``clip`` decide; the others are reported."""

    metrics: tuple[Literal["clip", "aesthetic", "pickscore", "mps"], ...] = ("clip", "aesthetic", "pickscore", "mps")


class Filter(_Strict):
    """ArtAug section 3.2: which pairs are kept. Of more than ``keep``, those whose aesthetic score rose most."""

    keep: int = Field(default=12, ge=1, le=10_000)
    review: Literal["none"] = "none"


class Train(_Strict):
    """ArtAug section 3.3 for every kept pair; ``together`` pairs share the forwards of one task."""

    rank: int = Field(default=8, ge=1, le=256)
    learning_rate: float = Field(default=1e-3, gt=0, lt=1)
    batch: int = Field(default=4, ge=1, le=256)
    steps_before: int = Field(default=120, ge=1, le=100_000)
    steps_after: int = Field(default=120, ge=1, le=100_000)
    together: int = Field(default=4, ge=1, le=64)


class Fuse(_Strict):
    """ArtAug section 3.4: theta + alpha * mean; ``rank`` compresses the exact mean, ``null`` keeps all of it."""

    alpha: float = Field(default=2.0, gt=0, le=10)
    rank: int | None = Field(default=None, ge=1, le=2048)


class RunSpec(_Strict):
    """One run of a recipe."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    recipe: Literal["artaug"] = "artaug"
    # "vista", or the folder of a diffusers pipeline (relative to the spec).
    model: str = "vista"
    # Samples in one task: fixed here, so that the bytes of a result do not depend on who did what when.
    batch: int = Field(default=8, ge=1, le=256)
    prompts: Prompts
    paint: Paint = Paint()
    ground: Ground = Ground()
    score: Score = Score()
    filter: Filter = Filter()
    train: Train = Train()
    fuse: Fuse = Fuse()
    # Prompts that are never used for pairs: base and fused model paint them from the same seeds.
    evaluate: Prompts


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
    here = path.parent
    update = {key: getattr(spec, key).model_copy(update={"file": here / getattr(spec, key).file}) for key in ("prompts", "evaluate")}
    if spec.model != "vista":
        update["model"] = str(here / spec.model)
    return spec.model_copy(update=update)


def read_prompts(prompts: Prompts, field: str) -> tuple[str, ...]:
    """The first ``count`` prompts of the file; empty lines and lines that begin with # do not count.

    Raises:
        InvalidInput: no such file, or too few prompts in it.
    """
    if not prompts.file.is_file():
        raise InvalidInput(f"{field}.file", f"there is no file {prompts.file}.")
    lines = [line.strip() for line in prompts.file.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if len(found) < prompts.count:
        raise InvalidInput(f"{field}.count", f"{prompts.file} has {len(found)} prompts, the run asks for {prompts.count}.")
    return tuple(found[: prompts.count])


def run_id(spec: RunSpec, prompts: tuple[str, ...], heldout: tuple[str, ...], models: dict[str, str]) -> str:
    """The run's name and a hash of all it depends on: the same run again is the same run, and goes on where it stood."""
    settings = spec.model_dump(mode="json", exclude={"prompts": {"file"}, "evaluate": {"file"}, "model": True})
    content = {"spec": settings, "prompts": prompts, "heldout": heldout, "models": models}
    return f"{spec.name}-{hashlib.sha256(canonical(content)).hexdigest()[:10]}"
