"""Training one adapter for each pair of pictures, many pairs in the same forwards, each as if it were alone.

An objective of this kind is one or two fits (`FitPlan`). The second stands on the first, which is frozen and dropped at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffusers import DiffusionPipeline
from torch import Tensor

from services.trainer.checkpoint import Checkpoint, FitJournal, LoadedCheckpoint, OnStep
from services.trainer.convergence import RANKS, ProbeLosses
from services.trainer.fit import Fit, FitInput, FitOutcome, frozen
from services.trainer.group import Group
from services.trainer.loss import FitContext, Loss, denoising_loss
from services.trainer.memory import pack_size
from services.trainer.objectives.objective import TrainedAdapter, TrainingSample, check_sample
from sfumato.diffusion.families import Family, family_of
from sfumato.errors import Diverged, InvalidInput
from sfumato.lora.packed import PackedLora

# Each picture of a pair has its own stream of the pair's seed, so that the fits draw different starting values and noise.
STREAMS = {"before": 0, "after": 1}
ORDINALS = ("first", "second")
PAIR_TASK = "trainer.train"


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How one adapter is trained. The defaults are Vista's; the paper's for FLUX.1[dev] are lr 1e-4, batch 1, 400 steps."""

    # The name of a `PairObjective` of the catalog.
    objective: str = "differential"
    # "auto": the smallest of 4, 8 and 16 with which the first fit converges; see `ProbeLosses.converged`.
    rank: int | Literal["auto"] = 8
    learning_rate: float = 1e-3
    # (t, noise) draws of the one picture in a step.
    batch: int = 4
    steps_before: int = 120
    steps_after: int = 120
    # The embedded guidance a guidance-distilled model is trained at.
    guidance: float = 1.0
    # Bytes the pairs of one step may take beside the model; None trains all pairs of a call together.
    memory: int | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks to try, smallest first."""
        return RANKS if self.rank == "auto" else (self.rank,)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPair:
    """A kept pair: final latents of X and X' in the family's layout, painted from ``prompt`` at ``width x height`` pixels."""

    prompt: str
    before: Tensor
    after: Tensor
    seed: int
    width: int = 64
    height: int = 64


@dataclass(frozen=True, slots=True)
class FitPlan:
    """One fit of an objective: the pictures of a pair it uses (``before``, ``after``), the one to learn first, and its steps."""

    pictures: tuple[str, ...]
    steps: int


@dataclass(frozen=True, slots=True)
class PairObjective:
    """An objective that trains one adapter for each pair; see `services.trainer.objectives.objective.Objective`."""

    name: str
    # One fit, or two.
    plan: Callable[[TrainSettings], tuple[FitPlan, ...]]
    loss: Loss = denoising_loss
    task: str = PAIR_TASK
    pictures: tuple[str, ...] = ("before", "after")

    def training(
        self, pipeline: DiffusionPipeline, samples: Sequence[TrainingSample], params: Mapping[str, Any], width: int, height: int
    ) -> PairTraining:
        """See `Objective.training`; ``params`` are the fields of `TrainSettings`."""
        pairs = [TrainingPair(s.prompt, s.latents["before"], s.latents["after"], s.seed, width, height) for s in samples]
        return PairTraining(self, pipeline, pairs, TrainSettings(**params))


class PairTraining:
    """A checked training of pairs of one size; the pipeline's weights are not written."""

    def __init__(
        self, objective: PairObjective, pipeline: DiffusionPipeline, pairs: Sequence[TrainingPair], settings: TrainSettings
    ) -> None:
        """Check.

        Raises:
            InvalidInput: pairs of different sizes, latents of another shape than their size requires, settings out of range.
        """
        self._family = family_of(pipeline)
        _check(pairs, settings, self._family)
        self._objective, self._pairs, self._settings = objective, pairs, settings
        first = pairs[0]
        self._context = FitContext(self._family, first.width, first.height, settings.guidance, settings.batch, settings.learning_rate)

    def adapters(
        self, group: Group, checkpoint: bytes | None = None, keep: Checkpoint | None = None, on_step: OnStep = None
    ) -> list[TrainedAdapter | Diverged]:
        """See `PreparedTraining.adapters`; every process of the group computes all of it."""
        return self.run(FitJournal(LoadedCheckpoint(checkpoint, keep), on_step))

    def run(self, journal: FitJournal) -> list[TrainedAdapter | Diverged]:
        """One result for each pair, in their order; a pair that diverges does not affect the others."""
        context, settings = self._context, self._settings
        with frozen(self._family.denoiser):
            texts = self._family.encode([pair.prompt for pair in self._pairs])
            fits = [
                PairFits(pair, {name: text[k : k + 1] for name, text in texts.items()}, self._family) for k, pair in enumerate(self._pairs)
            ]
            size = len(fits)
            if settings.memory is not None:
                like = fits[0].input(self._objective.plan(settings)[-1])
                size = min(size, pack_size(context, like, max(settings.ranks), settings.memory, self._objective.loss))
            results: list[TrainedAdapter | Diverged] = []
            for start in range(0, len(fits), size):
                results += self._train_pack(fits[start : start + size], journal, f"from {start}")
        return results

    def _train_pack(self, pack: Sequence[PairFits], journal: FitJournal, name: str) -> list[TrainedAdapter | Diverged]:
        """All fits of some pairs at the smallest rank that converges: pairs that do not converge are fitted again at the next rank."""
        settings, (first_plan, *later_plans) = self._settings, self._objective.plan(self._settings)
        results: dict[int, TrainedAdapter | Diverged] = {}
        for rank in settings.ranks:
            todo = [number for number in range(len(pack)) if number not in results]
            if not todo:
                break
            fit = self._fit(pack, todo, first_plan, rank, journal, f"{name}, rank {rank}, {ORDINALS[0]}", results)
            rows = [row for row, index in enumerate(fit.alive) if rank == settings.ranks[-1] or fit.probes(index).converged()]
            chosen = [todo[fit.alive[row]] for row in rows]
            for ordinal, plan in zip(ORDINALS[1:], later_plans, strict=False):
                if chosen:
                    base = fit.phi.pick(rows)
                    fit = self._fit(pack, chosen, plan, rank, journal, f"{name}, rank {rank}, {ordinal}", results, base)
                    rows, chosen = list(range(len(fit.alive))), [chosen[index] for index in fit.alive]
            for number, row in zip(chosen, rows, strict=True):
                pair, fits = pack[number].pair, pack[number]
                origin = {"objective": self._objective.name, "seed": str(pair.seed), "prompt": pair.prompt}
                results[number] = TrainedAdapter(fit.phi.adapter(row, origin), rank, tuple(fits.losses), tuple(fits.probes))
        return [results[number] for number in range(len(pack))]

    def _fit(
        self,
        pack: Sequence[PairFits],
        numbers: Sequence[int],
        plan: FitPlan,
        rank: int,
        journal: FitJournal,
        name: str,
        results: dict[int, TrainedAdapter | Diverged],
        base: PackedLora | None = None,
    ) -> Fit:
        """A finished fit of some pairs of a pack; those that diverged have their result."""
        fit = Fit(self._context, [pack[number].input(plan) for number in numbers], rank, plan.steps, base, self._objective.loss)
        fit.run(journal, name)
        for index, (number, outcome) in enumerate(zip(numbers, fit.outcomes, strict=True)):
            if outcome:
                results[number] = _diverged(pack[number].pair, outcome)
            else:
                pack[number].record(fit.losses[index], fit.probes(index), begins=base is None)
        return fit


class PairFits:
    """One pair, the inputs of its fits, and the record of the fits made."""

    def __init__(self, pair: TrainingPair, conditions: Mapping[str, Tensor], family: Family) -> None:
        device = next(family.denoiser.parameters()).device
        self.pair, self._conditions = pair, conditions
        self._latents = {"before": pair.before.to(device), "after": pair.after.to(device)}
        self.losses: list[float] = []
        self.probes: list[ProbeLosses] = []

    def input(self, plan: FitPlan) -> FitInput:
        """The input of one fit; its seed is a stream of the pair's."""
        pictures = tuple(self._latents[name] for name in plan.pictures)
        return FitInput(pictures, self._conditions, (self.pair.seed * 4 + STREAMS[plan.pictures[0]] * 2) % 2**62)

    def record(self, losses: Sequence[float], probes: ProbeLosses, *, begins: bool) -> None:
        """Add a fit. A first fit at a higher rank replaces the losses of the one before; the probe losses of all are kept."""
        self.losses = [*([] if begins else self.losses), *losses]
        self.probes.append(probes)


def _diverged(pair: TrainingPair, outcome: FitOutcome) -> Diverged:
    return Diverged(outcome.reason(pair.seed), hint="Lower the learning rate.")


def _check(pairs: Sequence[TrainingPair], settings: TrainSettings, family: Family) -> None:
    if not pairs:
        raise InvalidInput("pairs", "there are none.")
    if min(*settings.ranks, settings.batch, settings.steps_before, settings.steps_after) < 1:
        raise InvalidInput("settings", "rank, batch and steps must be at least 1.")
    if not 0 < settings.learning_rate < 1:
        raise InvalidInput("learning_rate", f"{settings.learning_rate:g} is not between 0 and 1.")
    width, height = pairs[0].width, pairs[0].height
    for index, pair in enumerate(pairs):
        if (pair.width, pair.height) != (width, height):
            raise InvalidInput(f"pairs[{index}]", "pairs trained together must have one size.")
        check_sample(f"pairs[{index}]", pair.prompt, {"before": pair.before, "after": pair.after}, family, width, height)
