"""The estimated cost of an ArtAug run, by stage (see `orchestrator.recipes.work`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.recipes.artaug.judging import MOST, MOST_LOOKED
from orchestrator.recipes.artaug.spec import ArtAugSpec
from orchestrator.recipes.work import STEP, Cost, Memory, Work, generator_memory, grounding_memory, kept_numbers, scoring_memory
from sfumato.runtime.models.sizes import Blocks, ModelSize

RANKS = (4, 8, 16)
"""The candidate ranks of "auto"."""
# Numbers of a LoRA's rank for a channel of a block, over all its linears: 50 and 21 in FLUX's double and single blocks.
LORA = 30
# Bytes of a number that is trained: itself, its gradient and AdamW's two moments, in single precision.
TRAINED = 16


class ArtAugCosts:
    """See `orchestrator.recipes.work.Costs`."""

    def __init__(self, spec: ArtAugSpec) -> None:
        self._spec = spec

    def rows(self, painter: ModelSize | None) -> int:
        """See `orchestrator.recipes.work.Costs`."""
        return 2 if painter is not None and painter.classifier_free and self._spec.paint.guidance > 1 else 1

    def counts(self, rows: int, regions: int) -> Counts:
        """See `orchestrator.recipes.work.Costs`."""
        return Counts(self._spec, rows, regions)

    def memory(
        self, models: Mapping[str, ModelSize | None], *, precision: int, rows: int, context: int, together: int
    ) -> list[Memory]:
        """See `orchestrator.recipes.work.Costs`. A trainer holds the generator's weights as well."""
        spec, painter = self._spec, models["generator"]
        size = spec.paint.width, spec.paint.height
        training = _training(spec, painter.blocks, precision) if painter is not None and painter.blocks else None
        return [
            generator_memory(painter, size, precision=precision, rows=rows, batch=spec.batch),
            grounding_memory(models["understanding"], precision=precision, context=context, together=together),
            scoring_memory(models),
            Memory("trainer", None if painter is None else painter.total * precision, training),
        ]


def _training(spec: ArtAugSpec, blocks: tuple[Blocks, ...], precision: int) -> int:
    """All blocks' activations for the rows of a step, and both adapters of every pair that is trained together."""
    train = spec.train
    rank = max(RANKS) if train.rank == "auto" else train.rank
    together = min(train.together, train.pairs)
    activations = sum(block.count * kept_numbers(block, spec.paint.width, spec.paint.height) for block in blocks)
    adapter = rank * LORA * sum(block.count * block.width for block in blocks)
    return together * (train.batch * activations * precision + adapter * (TRAINED + 4))


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of a spec, and the cost of each stage that follows from them.

    ``rows`` are those of a plain forward for each picture, ``regions`` those in each picture's advice.
    """

    spec: ArtAugSpec
    rows: int
    regions: int

    # --- pairs ---

    def refine(self) -> Cost | None:
        """Prompts do not change from one iteration to the next, nor do their refined wordings."""
        return Cost(once=Work(self._samples, questions=self.spec.prompts.count) if self.spec.ground.refine else Work())

    def generate(self) -> Cost | None:
        """Every sample painted plainly."""
        return Cost(each=self._painted(self.spec.prompts.count))

    def ground(self) -> Cost | None:
        """A conversation with the VLM about every picture."""
        return Cost(each=Work(self._samples, questions=self._asked(self.spec.prompts.count)))

    def regenerate(self) -> Cost | None:
        """Every sample painted under advice."""
        paint = self.spec.paint
        advised = paint.steps * self.rows + round(paint.steps * paint.regional_steps) * self.regions
        return Cost(each=Work(self._samples, self.spec.prompts.count * advised))

    def score(self) -> Cost | None:
        """Both pictures of every pair."""
        return Cost(each=Work(self._samples, pictures=2 * self.spec.prompts.count))

    def vlm_review(self) -> Cost | None:
        """Every pair in both orders."""
        asked = "vlm" in self.spec.filter.review
        return Cost(each=Work(self._samples, questions=2 * self.spec.prompts.count)) if asked else None

    def human_review(self) -> Cost | None:
        """A task for every pair."""
        return Cost(each=Work(self.spec.prompts.count)) if "human" in self.spec.filter.review else None

    # --- attempt: the base model is painted and scored once, a fused one when it is new ---

    def train(self) -> Cost | None:
        """Every pair alone, before and after."""
        train = self.spec.train
        return Cost(each=self._trained(train.steps_before + train.steps_after))

    def one_task(self) -> Cost | None:
        """The mean of all adapters, or an iteration's own LoRA file."""
        return Cost(each=Work(tasks=1))

    def stack(self) -> Cost | None:
        """A LoRA file for every alpha."""
        return Cost(each=Work(tasks=len(self.spec.fuse.alpha)))

    def paint_tuning(self) -> Cost | None:
        """The tuning prompts by the base model once, and by every candidate."""
        if self.spec.tune is None:
            return None
        painted = self._painted(self.spec.tune.count)
        return Cost(painted, painted.times(len(self.spec.fuse.alpha)))

    def choose_alpha(self) -> Cost | None:
        """The scores of all candidates, of the base model and of the current model."""
        return None if self.spec.tune is None else Cost(each=self._rated((len(self.spec.fuse.alpha) + 2) * self.spec.tune.count))

    def paint_heldout(self) -> Cost | None:
        """The held-out prompts and the ceiling once, and again for every fused model."""
        painted = self._painted(self.spec.evaluate.count)
        return Cost(painted.times(self._sets), painted)

    def score_heldout(self) -> Cost | None:
        """The same pictures scored."""
        rated = self._rated(self.spec.evaluate.count)
        return Cost(rated.times(self._sets), rated)

    # --- comparison, after the loop ---

    def compared(self, cost: Cost | None) -> Cost | None:
        """The cost of a stage of the naive attempt: that of one iteration; None without a comparison."""
        return Cost(once=cost.each) if cost is not None and self.spec.compare else None

    def naive_train(self) -> Cost | None:
        """Training on X' alone: one adapter per pair, or one on all pairs."""
        if not self.spec.compare:
            return None
        if self.spec.compare == "joint":
            joint = self.spec.joint
            return Cost(once=Work(1, joint.steps * joint.pictures * STEP), service="joint")
        return Cost(once=self._trained(self.spec.train.steps_after))

    def ground_again(self) -> Cost | None:
        """A conversation about X' of the first iteration's kept pairs."""
        looked = min(self.spec.prompts.count, MOST_LOOKED)
        return Cost(once=Work(self._tasks(looked), questions=self._asked(looked)))

    def judge(self) -> Cost | None:
        """The judge of Vista's pictures: the base model's, the ceiling's, the naive model's and every iteration's."""
        spec = self.spec
        if spec.model != "vista":
            return None
        each = min(spec.evaluate.count, MOST)
        looked = min(spec.prompts.count, MOST_LOOKED)
        return Cost(Work(1, pictures=each * self._sets + 2 * looked + (each if spec.compare else 0)), Work(pictures=each))

    # --- arithmetic ---

    @property
    def _samples(self) -> int:
        return self._tasks(self.spec.prompts.count)

    @property
    def _sets(self) -> int:
        return 2 if self.spec.evaluate.ceiling else 1

    def _tasks(self, items: int) -> int:
        return -(-items // self.spec.batch)

    def _asked(self, pictures: int) -> int:
        return pictures * (3 if self.spec.ground.strategy == "three-turn" else 1)

    def _painted(self, pictures: int) -> Work:
        return Work(self._tasks(pictures), pictures * self.spec.paint.steps * self.rows)

    def _rated(self, pictures: int) -> Work:
        return Work(self._tasks(pictures), pictures=pictures)

    def _trained(self, steps: int) -> Work:
        """Every pair alone at ``batch`` rows a step; with "auto", at each rank in turn."""
        train = self.spec.train
        pairs, tries = min(train.pairs, self.spec.prompts.count), len(RANKS) if train.rank == "auto" else 1
        return Work(-(-pairs // train.together), pairs * tries * steps * train.batch * STEP)
