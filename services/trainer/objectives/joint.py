"""Joint training: one adapter for a whole set of pictures, ``phi = argmin E[L]`` over all of them, by one process or by many.

This is the paper's baseline (section 4.3.2, "a LoRA model naively trained using the filtered data"), and the form of an objective whose
step is larger than one GPU can hold: the settings cut a step into forwards, whatever the number of processes; every draw has its own
number; gradients are added along one tree. So the adapter is the same to the last bit whether one process trains it or eight, and
whether or not they were interrupted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from services.trainer.checkpoint import Checkpoint, FitJournal, FitState, FitStep, LoadedCheckpoint, OnStep
from services.trainer.fit import EXPLODED, PATIENCE, frozen
from services.trainer.group import Group, flat, shaped, summed
from services.trainer.loss import FitContext, LossRows, denoising_loss
from services.trainer.objectives.objective import TrainedAdapter, TrainingSample, check_sample
from services.trainer.optimizer import Optimizer
from sfumato.diffusion.families import Family, family_of
from sfumato.errors import Diverged, InvalidInput, SfumatoError
from sfumato.lora.packed import PackedLora

FIT = "joint"
# Draws that one seed has: a step takes one for its levels and one for each of its pictures, an epoch one of the upper half.
DRAWS = 2**32
# Orders of epochs kept: a step may need two of them.
ORDERS = 2


@dataclass(frozen=True, slots=True)
class JointSettings:
    """How one adapter is trained on many pictures. A step takes ``pictures`` of them, ``together`` in one forward."""

    rank: int = 8
    learning_rate: float = 1e-3
    steps: int = 240
    # Divided by ``together``, this is how many processes can share a step at most (of these, the powers of two that divide it).
    pictures: int = 16
    together: int = 4
    # The embedded guidance a guidance-distilled model is trained at.
    guidance: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class JointPicture:
    """Final latents in the family's layout, painted from ``prompt``."""

    prompt: str
    latents: Tensor


@dataclass(frozen=True, slots=True)
class JointObjective:
    """One adapter for all samples of a task; see `Objective`."""

    name: str = FIT
    # A kind of its own, and so a queue of its own: on a cluster several processes may do it (`services.trainer.distributed`).
    task: str = "joint.train"
    pictures: tuple[str, ...] = ("latents",)

    def training(
        self, pipeline: DiffusionPipeline, samples: Sequence[TrainingSample], params: Mapping[str, Any], width: int, height: int
    ) -> JointTraining:
        """See `Objective.training`; ``params`` are the fields of `JointSettings`."""
        pictures = [JointPicture(sample.prompt, sample.latents["latents"]) for sample in samples]
        return JointTraining(pipeline, pictures, JointSettings(**params), width, height)


JOINT = JointObjective()


class JointTraining:
    """A training whose input is checked and encoded."""

    def __init__(
        self, pipeline: DiffusionPipeline, pictures: Sequence[JointPicture], settings: JointSettings, width: int, height: int
    ) -> None:
        """Check and encode. The pipeline's weights are not written, now or later.

        Args:
            pipeline: with what is learnt so far fused.
            pictures: all of ``width`` x ``height`` pixels.
            settings: how to train.
            width: in pixels.
            height: in pixels.

        Raises:
            InvalidInput: latents of another shape than the size asks, settings out of range.
        """
        family = family_of(pipeline)
        _check(pictures, settings, family, width, height)
        self._family, self._pictures, self._settings = family, pictures, settings
        self._context = FitContext(family, width, height, settings.guidance, settings.together, settings.learning_rate)
        # One by one, so that no text's encoding depends on the others of a batch; kept in CPU memory.
        self._texts = [{name: text.cpu() for name, text in family.encode([picture.prompt]).items()} for picture in pictures]
        self._order = lru_cache(ORDERS)(self._shuffled)

    def adapters(
        self, group: Group, checkpoint: bytes | None = None, keep: Checkpoint | None = None, on_step: OnStep = None
    ) -> list[TrainedAdapter | Diverged]:
        """See `PreparedTraining.adapters`: one result."""
        try:
            return [self.run(group, checkpoint, keep, on_step)]
        except Diverged as error:
            return [error]

    def run(self, group: Group, checkpoint: bytes | None = None, keep: Checkpoint | None = None, on_step: OnStep = None) -> TrainedAdapter:
        """Train; every process of the group makes this call and has the adapter at the end.

        Args:
            group: the processes that share the work.
            checkpoint: the state to continue from, the same for all processes; None for the beginning.
            keep: where the leader saves the state.
            on_step: is called with every step of this process; an exception it raises ends the training.

        Raises:
            Diverged: the loss exploded or left the finite numbers.
            BrokenWeights: the checkpoint is damaged.
            SfumatoError: the processes came to different adapters.
            Unavailable: a process of the group is gone.
        """
        journal = FitJournal(LoadedCheckpoint(checkpoint, keep), on_step)
        with frozen(self._family.denoiser):
            return self._run(group, journal)

    def _run(self, group: Group, journal: FitJournal) -> TrainedAdapter:
        settings, known = self._settings, journal.recall(FIT)
        phi = PackedLora.fresh(self._family.denoiser, self._family.lora_targets, settings.rank, [settings.seed])
        losses: list[float] = []
        if known is not None:
            phi, losses = phi.like(known, None), known["losses"].tolist()
        optimizer = Optimizer(phi, settings.learning_rate)
        optimizer.load(known or {})
        factors = phi.parameters()
        like = [*factors, torch.zeros(1)]

        def state() -> FitState:
            return {"losses": torch.tensor(losses, dtype=torch.float64)} | phi.state() | optimizer.state()

        for step in range(len(losses), settings.steps):
            whole = summed(
                group,
                lambda part, step=step: self._gradient(phi, step, part),
                settings.pictures // settings.together,
                lambda: flat([torch.zeros_like(factor) for factor in like]).to(factors[0]),
            )
            *gradients, loss = shaped(whole, like)
            losses.append(loss.item())
            check(losses)
            optimizer.step(gradients)
            journal.save_if_due(FIT, state)
            journal.report(FitStep(FIT, step + 1, settings.steps, len(self._pictures), losses[-1]))
        if not all(phi.finite()):
            raise Diverged("Joint training diverged: its last step left the finite numbers.", hint="Lower the learning rate.")
        _agree(group, factors)
        said = {"objective": FIT, "seed": str(settings.seed), "pictures": str(len(self._pictures))}
        return TrainedAdapter(phi.adapter(0, said), settings.rank, tuple(losses))

    def _gradient(self, phi: PackedLora, step: int, part: int) -> Tensor:
        """One forward's part in the gradient of a step, flat, and its part in the loss as the last number."""
        settings, together = self._settings, self._settings.together
        slots = range(part * together, (part + 1) * together)
        chosen = [self._chosen(step, slot) for slot in slots]
        factors = phi.parameters()
        where = {"dtype": factors[0].dtype, "device": factors[0].device}
        noise = torch.stack([torch.randn(self._pictures[0].latents.shape, generator=self._draws(step, slot)) for slot in slots]).to(**where)
        clean = torch.stack([self._pictures[index].latents for index in chosen]).to(**where)
        conditions = {
            name: torch.cat([self._texts[index][name] for index in chosen]).to(factors[0].device) for name in self._texts[chosen[0]]
        }
        rows = LossRows((clean,), conditions, self._quantiles(step)[list(slots)], noise)
        loss = denoising_loss(self._context, rows, phi).flatten(1).mean(1).sum() / settings.pictures
        return flat([*torch.autograd.grad(loss, factors), loss.detach()])

    def _chosen(self, step: int, slot: int) -> int:
        """The picture at a place of a step: all pictures in turn, in a new random order every epoch."""
        epoch, place = divmod(step * self._settings.pictures + slot, len(self._pictures))
        return self._order(epoch)[place]

    def _shuffled(self, epoch: int) -> list[int]:
        return torch.randperm(len(self._pictures), generator=self._generator(DRAWS // 2 + epoch)).tolist()

    def _quantiles(self, step: int) -> Tensor:
        """Of the noise levels of a step, ``[pictures]``: stratified over the step, in any order."""
        pictures, generator = self._settings.pictures, self._generator(step * (self._settings.pictures + 1))
        return (torch.randperm(pictures, generator=generator) + torch.rand(pictures, generator=generator)) / pictures

    def _draws(self, step: int, slot: int) -> torch.Generator:
        return self._generator(step * (self._settings.pictures + 1) + 1 + slot)

    def _generator(self, draw: int) -> torch.Generator:
        return torch.Generator().manual_seed((self._settings.seed * DRAWS + draw) % 2**63)


def check(losses: Sequence[float]) -> None:
    """Refuse losses that have diverged; all processes have the same losses, and end at the same step.

    Raises:
        Diverged: the last loss is not finite, or the last `PATIENCE` are all more than `EXPLODED` times the highest of the first.
    """
    if not math.isfinite(losses[-1]):
        raise Diverged(f"Joint training diverged: its loss left the finite numbers in step {len(losses)}.", hint="Lower the learning rate.")
    if len(losses) >= 2 * PATIENCE and min(losses[-PATIENCE:]) > EXPLODED * max(losses[:PATIENCE]):
        reason = f"its loss stayed above {EXPLODED:g} times its start for {PATIENCE} steps"
        raise Diverged(f"Joint training diverged: {reason}.", hint="Lower the learning rate.")


def _agree(group: Group, factors: Sequence[Tensor]) -> None:
    """Compare the adapters of all processes: machines of different kinds round differently."""
    digest = hashlib.sha256(flat(factors).detach().cpu().numpy().tobytes()).hexdigest()
    if len(set(group.gather_text(digest))) > 1:
        raise SfumatoError("The processes came to different adapters.", hint="Train on machines of one kind.")


def _check(pictures: Sequence[JointPicture], settings: JointSettings, family: Family, width: int, height: int) -> None:
    if not pictures:
        raise InvalidInput("pictures", "there are none.")
    if min(settings.rank, settings.steps, settings.pictures, settings.together) < 1:
        raise InvalidInput("settings", "rank, steps, pictures and together must be at least 1.")
    if settings.pictures % settings.together:
        raise InvalidInput("together", f"{settings.together} pictures of a forward do not divide the {settings.pictures} of a step.")
    if settings.steps * (settings.pictures + 1) >= DRAWS // 2:
        raise InvalidInput("steps", "steps times pictures are too many.")
    if not 0 < settings.learning_rate < 1:
        raise InvalidInput("learning_rate", f"{settings.learning_rate:g} is not between 0 and 1.")
    for index, picture in enumerate(pictures):
        check_sample(f"pictures[{index}]", picture.prompt, {"latents": picture.latents}, family, width, height)
