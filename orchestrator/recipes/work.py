"""The estimated cost of a run: tasks, denoiser forwards, questions and memory, computed from its spec.

A forward is one pass of one row through the denoiser: a picture, an unconditional branch or a region. Batched rows take less time
than single ones, but are counted individually. A training step counts as three: a forward, and a backward of twice the cost.
Everything is an upper bound: no sample is rejected, no training stops early, a loop runs to its last iteration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.engine.stages import Barrier, Loop, PerBatch, Phase, Stage
from sfumato.runtime.models.sizes import Blocks, ModelSize

TYPICAL_REGIONS = 5
"""Typical number of regions in a VLM's advice, used for ArtAug's costs."""
STEP = 3
"""Forwards per row of a training step."""
FORWARD = 16
"""Maximum number of rows in one forward of the generator."""


@dataclass(frozen=True, slots=True)
class Work:
    """Micro-batch tasks, denoiser forwards, questions to the VLM, pictures scored."""

    tasks: int = 0
    forwards: int = 0
    questions: int = 0
    pictures: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tasks + other.tasks, self.forwards + other.forwards, self.questions + other.questions, self.pictures + other.pictures
        )

    def times(self, count: int) -> Work:
        """This work ``count`` times."""
        return Work(self.tasks * count, self.forwards * count, self.questions * count, self.pictures * count)


@dataclass(frozen=True, slots=True)
class Cost:
    """The work of a stage: once in the run, and again in each iteration of the loop. ``service`` replaces the stage's own."""

    once: Work = Work()
    each: Work = Work()
    service: str = ""


@dataclass(frozen=True, slots=True)
class StageWork:
    """The cost of a stage of a phase. ``service`` is "you" if a person does it."""

    phase: str
    stage: str
    service: str
    once: Work
    each: Work

    def total(self, iterations: int) -> Work:
        """The work of a run of ``iterations`` iterations."""
        return self.once + self.each.times(iterations)


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one service's worker in bytes: weights and working memory; ``None`` if a model's size is not known."""

    service: str
    weights: int | None
    work: int | None

    @property
    def total(self) -> int | None:
        """Both, if both are known."""
        return None if self.weights is None or self.work is None else self.weights + self.work


class Costs(Protocol):
    """A method's cost model of a spec. The stages' ``work`` functions are called with the `counts`."""

    def rows(self, painter: ModelSize | None) -> int:
        """Rows of a plain forward for each picture: 2 with classifier-free guidance."""
        ...

    def counts(self, rows: int, regions: int) -> Any:
        """The argument of the stages' ``work`` functions, for ``rows`` per picture and ``regions`` in its advice."""
        ...

    def memory(
        self, models: Mapping[str, ModelSize | None], *, precision: int, rows: int, context: int, together: int
    ) -> list[Memory]:
        """Bytes of every service's worker.

        Args:
            models: sizes by part; None if not known.
            precision: bytes per parameter of the generator and the VLM.
            rows: batch size of a denoiser forward.
            context: tokens of a conversation with the VLM.
            together: concurrent conversations.
        """
        ...


def count_work(stages: Sequence[Stage], counts: Any, phase: str = "") -> list[StageWork]:
    """The cost of every stage that has work, in the order of the recipe."""
    counted: list[StageWork] = []
    for stage in stages:
        if isinstance(stage, Loop | Phase):
            counted += count_work(stage.stages, counts, stage.name)
            continue
        cost: Cost | None = stage.work(counts) if stage.work is not None else None
        if cost is not None:
            counted.append(StageWork(phase, stage.name, cost.service or _service(stage), cost.once, cost.each))
    return counted


def _service(stage: PerBatch | Barrier) -> str:
    if isinstance(stage, Barrier) and stage.asks is not None:
        return "you"
    return stage.services[0] if stage.services else ""


# --- memory of the parts that methods share ---

# Numbers that one block of a transformer keeps for a token and a channel: 34 bytes at two bytes a number, without the matrix of
# attention scores (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1).
KEPT = 17
# Feature maps that a picture decoder holds at full size: a layer's input, its output and the one that skips it.
MAPS = 3


def kept_numbers(block: Blocks, width: int, height: int) -> int:
    """Numbers that one block keeps for a row of a picture of this size in pixels."""
    return KEPT * block.tokens(width, height) * block.width


def generator_memory(painter: ModelSize | None, size: tuple[int, int], *, precision: int, rows: int, batch: int) -> Memory:
    """A generator's worker that sends ``rows`` through the denoiser together and decodes up to ``batch`` pictures."""
    if painter is None:
        return Memory("generator", None, None)
    if not painter.blocks:
        return Memory("generator", painter.total * precision, None)
    width, height = size
    painting = precision * rows * max(kept_numbers(block, width, height) for block in painter.blocks)
    decoding = precision * min(rows, batch) * MAPS * painter.decoder_channels * width * height
    return Memory("generator", painter.total * precision, max(painting, decoding))


def grounding_memory(viewer: ModelSize | None, *, precision: int, context: int, together: int) -> Memory:
    """A VLM server that holds ``together`` conversations of ``context`` tokens."""
    if viewer is None:
        return Memory("grounding", None, None)
    cache = None if viewer.cache is None else precision * context * together * viewer.cache.per_token
    return Memory("grounding", viewer.total * precision, cache)


def scoring_memory(models: Mapping[str, ModelSize | None]) -> Memory:
    """A scoring worker with all scorers in float32."""
    scorers = [size for part, size in models.items() if part not in ("generator", "understanding")]
    return Memory("scoring", None if None in scorers else 4 * sum(size.total for size in scorers if size), 0)
