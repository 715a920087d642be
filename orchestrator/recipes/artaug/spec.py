"""The spec of an ArtAug run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.recipes.inputs import Input
from orchestrator.recipes.models import GeneratorModel, JudgeModels, Needed, ScorerModels, UnderstandingModel
from orchestrator.recipes.spec import Ground, Paint, Prompts, RunSpec, Score, SpecSection

INPUTS = (
    Input("train", "prompts"),  # those that pairs are made from
    Input("tune", "tune", apart_from=("train",)),  # those that alpha is chosen on
    Input("heldout", "evaluate", apart_from=("train", "tune")),  # those held out for the evaluation
    Input("ceiling", "evaluate", key="ceiling"),  # the held-out scenes, worded to ask explicitly for the learned style
)


class HeldOutPrompts(Prompts):
    """Prompts that are never used for pairs: every fused model paints them from the same seeds.

    ``ceiling`` is a file with the same scenes, line by line, worded to ask explicitly for what the loop teaches: the base model's
    pictures of them are an upper bound for the tuned model's pictures of the plain prompts.
    """

    count: int = Field(ge=1, le=100_000)
    ceiling: Path | None = None


class PairScore(Score):
    """What is measured on every picture. ``clip`` and ``aesthetic`` decide, ``nudenet`` can refuse, the others are reported."""

    @model_validator(mode="after")
    def _decisive(self) -> PairScore:
        if not {"clip", "aesthetic"} <= set(self.metrics):
            raise ValueError("metrics: clip and aesthetic are needed, for they decide which pairs are kept")
        return self


class Filter(SpecSection):
    """ArtAug section 3.2: which pairs are kept, and how they are reviewed before training."""

    # The minimum increase of the aesthetic score ("clear improvement"); at 0 any increase suffices.
    min_gain: float = Field(default=0.0, ge=0, le=9)
    # vlm: an A/B judge, asked in both orders. human: the run waits for `sfumato review`. vlm+human: one, then the other.
    review: Literal["none", "vlm", "human", "vlm+human"] = "none"


class Train(SpecSection):
    """ArtAug section 3.3 for every kept pair; ``together`` pairs share the forwards of one task."""

    # The maximum number of pairs; those with the highest increase of the aesthetic score are taken.
    pairs: int = Field(default=12, ge=1, le=10_000)
    # "auto": the smallest of 4, 8 and 16 that converges on the training picture.
    rank: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 8
    learning_rate: float = Field(default=1e-3, gt=0, lt=1)
    batch: int = Field(default=4, ge=1, le=256)
    steps_before: int = Field(default=120, ge=1, le=100_000)
    steps_after: int = Field(default=120, ge=1, le=100_000)
    together: int = Field(default=4, ge=1, le=64)


class Joint(SpecSection):
    """One adapter for all kept pairs, naively trained on X' (ArtAug section 4.3.2): the baseline of Table 2 if ``compare`` is ``joint``.

    Rank and learning rate are those of ``train``. A step's ``pictures`` pass the model in forwards of ``together`` pictures, in one process
    or in a power of two of processes that divides a step; the adapter's bytes do not depend on their number.
    """

    steps: int = Field(default=240, ge=1, le=100_000)
    pictures: int = Field(default=16, ge=1, le=4096)
    together: int = Field(default=4, ge=1, le=256)

    @model_validator(mode="after")
    def _whole(self) -> Joint:
        if self.pictures % self.together:
            raise ValueError(f"together: {self.together} pictures of a forward do not divide the {self.pictures} of a step")
        return self


class Fuse(SpecSection):
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


class Stop(SpecSection):
    """When the loop ends: fewer pairs survive filter and review than ``min_pairs``, or ``max_iterations`` are done."""

    max_iterations: int = Field(default=8, ge=1, le=64)
    min_pairs: int = Field(default=4, ge=1, le=10_000)


class ArtAugSpec(RunSpec):
    """One run of ArtAug."""

    recipe: Literal["artaug"] = "artaug"  # pyright: ignore[reportIncompatibleVariableOverride]
    prompts: Prompts
    paint: Paint = Paint()
    ground: Ground = Ground()
    score: PairScore = PairScore()
    filter: Filter = Filter()
    train: Train = Train()
    fuse: Fuse = Fuse()
    stop: Stop = Stop()
    # Prompts on which alpha is chosen: neither used for pairs nor reported. Required if there is more than one alpha.
    tune: Prompts | None = None
    evaluate: HeldOutPrompts
    # Also train the first iteration's pairs naively, on X' alone, and compare (the paper's Table 2): one adapter per pair (true), or one
    # adapter on all pairs (joint).
    compare: bool | Literal["joint"] = False
    joint: Joint = Joint()

    @model_validator(mode="after")
    def _choice(self) -> ArtAugSpec:
        if self.tune is None and (len(self.fuse.alpha) > 1 or self.compare):
            raise ValueError("tune: prompts are needed to choose alpha on, and for the comparison with naive training")
        if self.compare == "joint" and self.train.rank == "auto":
            raise ValueError("train.rank: joint training needs a number; the test of convergence is one of single pairs")
        if self.tune is not None and self.tune.count > 100_000:
            raise ValueError("tune.count: every model that is tried paints them; no more than 100000 are allowed")
        return self

    def unused(self) -> set[str]:
        """See `RunSpec`."""
        return set() if self.compare == "joint" else {"joint"}


def needed_models(spec: ArtAugSpec) -> tuple[Needed, ...]:
    """The generator, the understanding module, the scorers and, for Vista, the judge."""
    named = tuple(sorted((str(metric), reference) for metric, reference in spec.score.models.items()))
    needed: tuple[Needed, ...] = (
        GeneratorModel(spec.model),
        UnderstandingModel(spec.ground.model, spec.ground.backend, spec.ground.profile, spec.ground.strategy),
        ScorerModels(tuple(spec.score.metrics), named),
    )
    return (*needed, JudgeModels()) if spec.model == "vista" else needed


def review(spec: ArtAugSpec) -> str:
    """Why runs of this spec have no human review; empty if they have one."""
    if "human" in spec.filter.review:
        return ""
    return f"its review is {spec.filter.review!r} (filter.review: human and vlm+human have one)"
