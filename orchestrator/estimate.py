"""What a run comes to before it is begun: tasks, denoiser forwards, questions and memory, by arithmetic on its spec.

A forward is one row through the denoiser once: a picture, an unconditional branch or a region's. Rows that go through together
take less time than one by one, but are counted each. A step of training is three: the forward, and a backward of twice as much.
Everything is the most there can be: no pair is refused, no training stops early, the loop goes on to its last iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.recipes.artaug.judging import MOST
from orchestrator.recipes.artaug.pairs import MOST_LOOKED
from orchestrator.spec import RunSpec
from sfumato.runtime.models.sizes import Blocks, ModelSize

TYPICAL_REGIONS = 5
"""Regions a VLM names in a picture: the number at which ArtAug's cost is usually counted."""
STEP = 3
RANKS = (4, 8, 16)
"""What a rank of "auto" is chosen among."""
FORWARD = 16
"""Rows that the generator sends through the denoiser together at most."""


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
        """All of it so often."""
        return Work(self.tasks * count, self.forwards * count, self.questions * count, self.pictures * count)


@dataclass(frozen=True, slots=True)
class StageWork:
    """A stage: its work once in the run, and again in each iteration. ``service`` is who does it, "you" for a person."""

    stage: str
    service: str
    once: Work = Work()
    each: Work = Work()

    def total(self, iterations: int) -> Work:
        """The work of a run of so many iterations."""
        return self.once + self.each.times(iterations)


def count_work(spec: RunSpec, *, rows: int = 1, regions: int = TYPICAL_REGIONS) -> list[StageWork]:
    """Every stage of ``spec``, in the order of the recipe.

    Args:
        spec: what is to be run.
        rows: of a plain forward for each picture, 2 with classifier-free guidance.
        regions: in each picture's advice.
    """
    counts = _Counts(spec, rows, regions)
    stages = [*counts.pairs(), *counts.trial(), StageWork("finish", "trainer", each=Work(tasks=1))]
    return [*stages, *counts.comparison()]


class _Counts:
    """The spec's numbers, and what follows from them."""

    def __init__(self, spec: RunSpec, rows: int, regions: int) -> None:
        self.spec, self.samples, self.batch = spec, spec.prompts.count, spec.batch
        self.plain = spec.paint.steps * rows
        self.advised = self.plain + round(spec.paint.steps * spec.paint.regional_steps) * regions
        self.trained = min(spec.train.pairs, self.samples)

    def tasks(self, items: int) -> int:
        """Micro-batches for so many items."""
        return -(-items // self.batch)

    def painted(self, pictures: int) -> Work:
        return Work(self.tasks(pictures), pictures * self.plain)

    def rated(self, pictures: int) -> Work:
        return Work(self.tasks(pictures), pictures=pictures)

    def pairs(self) -> list[StageWork]:
        """From prompts to pairs that somebody looked at."""
        spec, samples, tasks = self.spec, self.samples, self.tasks(self.samples)
        asked = samples * (3 if spec.ground.strategy == "three-turn" else 1)
        stages = [
            # Prompts do not change from one iteration to the next, nor do their refined wordings.
            StageWork("refine", "grounding", once=Work(tasks, questions=samples) if spec.ground.refine else Work()),
            StageWork("generate", "generator", each=self.painted(samples)),
            StageWork("ground", "grounding", each=Work(tasks, questions=asked)),
            StageWork("regenerate", "generator", each=Work(tasks, samples * self.advised)),
            StageWork("score", "scoring", each=Work(tasks, pictures=2 * samples)),
            StageWork("resemble", "scoring", each=Work(tasks, pictures=2 * samples)),
        ]
        if "vlm" in spec.filter.review:
            stages.append(StageWork("review", "grounding", each=Work(tasks, questions=2 * samples)))  # in both orders
        if "human" in spec.filter.review:
            stages.append(StageWork("show", "you", each=Work(samples)))
        return stages

    def training(self, steps: int) -> Work:
        """Every pair alone at ``batch`` rows a step; with "auto", at each rank in turn."""
        train = self.spec.train
        tries = len(RANKS) if train.rank == "auto" else 1
        return Work(-(-self.trained // train.together), self.trained * tries * steps * train.batch * STEP)

    def trial(self) -> list[StageWork]:
        """From kept pairs to a measured model; the base model is painted and measured once, a fused one when it is new."""
        train, alphas, heldout = self.spec.train, len(self.spec.fuse.alpha), self.spec.evaluate
        sets = 2 if heldout.ceiling else 1
        stages = [
            StageWork("train", "trainer", each=self.training(train.steps_before + train.steps_after)),
            StageWork("average", "trainer", each=Work(tasks=1)),
            StageWork("fuse", "trainer", each=Work(tasks=alphas)),
        ]
        if self.spec.tune is not None:
            stages += [
                StageWork("tune", "generator", self.painted(self.spec.tune.count), self.painted(self.spec.tune.count).times(alphas)),
                StageWork("choose", "scoring", each=self.rated((alphas + 2) * self.spec.tune.count)),
            ]
        return [
            *stages,
            StageWork("evaluate", "generator", self.painted(heldout.count).times(sets), self.painted(heldout.count)),
            StageWork("measure", "scoring", self.rated(heldout.count).times(sets), self.rated(heldout.count)),
        ]

    def comparison(self) -> list[StageWork]:
        """After the loop: the naive trial, if it is asked for, another look at the first iteration's pairs, and the judge's."""
        looked = min(self.samples, MOST_LOOKED)
        asked = looked * (3 if self.spec.ground.strategy == "three-turn" else 1)
        look = [StageWork("compare", "grounding", once=Work(self.tasks(looked), questions=asked))]
        if self.spec.model == "vista":
            heldout = min(self.spec.evaluate.count, MOST) * (2 if self.spec.evaluate.ceiling else 1)
            each = min(self.spec.evaluate.count, MOST)
            once = Work(1, pictures=heldout + 2 * looked + (each if self.spec.compare else 0))
            look.append(StageWork("judge", "scoring", once=once, each=Work(pictures=each)))
        if not self.spec.compare:
            return look
        naive = [StageWork(f"naive {work.stage}", work.service, once=work.each) for work in self.trial()]
        training = StageWork("naive train", "trainer", once=self.training(self.spec.train.steps_after))
        if self.spec.compare == "joint":
            joint = self.spec.joint
            training = StageWork("naive train", "joint", once=Work(1, joint.steps * joint.pictures * STEP))
        return [training, *naive[1:], *look]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one service's worker: weights, and what its work needs beside them; ``None`` where a model's size is not known."""

    service: str
    weights: int | None
    work: int | None

    @property
    def total(self) -> int | None:
        """Both, if both are known."""
        return None if self.weights is None or self.work is None else self.weights + self.work


# Numbers that one block of a transformer keeps for a token and a channel: 34 bytes at two bytes a number, without the matrix of
# attention scores (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1).
KEPT = 17
# Numbers of a LoRA's rank for a channel of a block, over all its linears: 50 and 21 in FLUX's double and single blocks.
LORA = 30
# Bytes of a number that is trained: itself, its gradient and AdamW's two moments, in single precision.
TRAINED = 16
# Feature maps that a picture decoder holds at full size: a layer's input, its output and the one that skips it.
MAPS = 3


def memory(
    spec: RunSpec,
    models: Mapping[str, ModelSize | None],
    *,
    precision: int,
    rows: int,
    context: int,
    together: int,
) -> list[Memory]:
    """What each service needs, in bytes, at ``precision`` bytes a number (scorers compute in single precision).

    Args:
        spec: what is to be run.
        models: sizes of ``generator``, ``understanding`` and of each metric's scorer by its name.
        precision: 2 or 4.
        rows: of the largest forward of the generator.
        context: tokens of the longest conversation with the VLM.
        together: conversations held at once.
    """
    width, height = spec.paint.width, spec.paint.height
    painter, viewer = models["generator"], models["understanding"]
    scorers = [size for part, size in models.items() if part not in ("generator", "understanding")]
    painting = decoding = training = cache = None
    if painter is not None and painter.blocks:
        painting = precision * rows * max(_kept(block, width, height) for block in painter.blocks)
        decoding = precision * min(rows, spec.batch) * MAPS * painter.decoder_channels * width * height
        training = _training(spec, painter.blocks, precision)
    if viewer is not None and viewer.cache is not None:
        cache = precision * context * together * viewer.cache.per_token
    weights = None if painter is None else painter.total * precision
    return [
        Memory("generator", weights, None if painting is None or decoding is None else max(painting, decoding)),
        Memory("grounding", None if viewer is None else viewer.total * precision, cache),
        Memory("scoring", None if None in scorers else 4 * sum(size.total for size in scorers if size), 0),
        Memory("trainer", weights, training),
    ]


def _kept(block: Blocks, width: int, height: int) -> int:
    return KEPT * block.tokens(width, height) * block.width


def _training(spec: RunSpec, blocks: tuple[Blocks, ...], precision: int) -> int:
    """All blocks' activations for the rows of a step, and both adapters of every pair that is trained together."""
    train = spec.train
    rank = max(RANKS) if train.rank == "auto" else train.rank
    together = min(train.together, train.pairs)
    activations = sum(block.count * _kept(block, spec.paint.width, spec.paint.height) for block in blocks)
    adapter = rank * LORA * sum(block.count * block.width for block in blocks)
    return together * (train.batch * activations * precision + adapter * (TRAINED + 4))
