"""The training of pairs as function calls; see `services.trainer.pairs` and `services.trainer.objectives`."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DiffusionPipeline
from torch import Tensor

from services.trainer.checkpoint import Checkpoint, FitJournal, OnStep
from services.trainer.objectives.catalog import pair_objective
from services.trainer.objectives.objective import TrainedAdapter
from services.trainer.pairs import PairTraining, TrainingPair, TrainSettings
from sfumato.diffusion.families import family_of
from sfumato.errors import Diverged


def train_pair(
    pipeline: DiffusionPipeline,
    prompt: str,
    before: Tensor,
    after: Tensor,
    settings: TrainSettings,
    seed: int,
    *,
    width: int | None = None,
    height: int | None = None,
) -> TrainedAdapter:
    """Train one pair; see `train_pairs`. Without width and height, the picture has the model's own size.

    Raises:
        Diverged: the loss exploded or left the finite numbers.
        InvalidInput: as `train_pairs`.
    """
    size = family_of(pipeline).limits.default_size
    pair = TrainingPair(prompt, before, after, seed, width or size, height or size)
    result = train_pairs(pipeline, [pair], settings)[0]
    if isinstance(result, Diverged):
        raise result
    return result


def train_pairs(
    pipeline: DiffusionPipeline,
    pairs: Sequence[TrainingPair],
    settings: TrainSettings,
    checkpoint: Checkpoint | None = None,
    on_step: OnStep = None,
) -> list[TrainedAdapter | Diverged]:
    """Train one adapter for each pair, many pairs in the same forwards, each as if it were alone.

    Noise, times and starting values of a pair come from its own seed. For a pair that diverges the reason is returned; the other pairs
    are not affected. The pipeline's weights are not written and carry no adapter afterwards, so it can be called repeatedly. With a
    ``checkpoint``, a call that was killed continues from the last saved state and ends in the same bytes. ``on_step`` is called with
    every step; an exception it raises ends the training.

    Raises:
        InvalidInput: an unknown objective, pairs of different sizes, latents of another shape than their size requires, settings out
            of range.
        BrokenWeights: the checkpoint is damaged.
    """
    return PairTraining(pair_objective(settings.objective), pipeline, pairs, settings).run(FitJournal(checkpoint, on_step))
