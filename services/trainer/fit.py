"""One fit of several adapters at once: ``phi = argmin E[L]``, each on its own input, from theta or from theta with a frozen phi_1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from services.trainer.checkpoint import FitJournal, FitState, FitStep
from services.trainer.convergence import PROBES, ProbeLosses
from services.trainer.loss import FitContext, Loss, LossRows, denoising_loss
from services.trainer.optimizer import Optimizer
from sfumato.lora.packed import PackedLora

# A loss above this many times the untrained probe loss, for this many consecutive steps, has exploded.
EXPLODED = 10.0
PATIENCE = 10


class FitOutcome(IntEnum):
    """How the fit of an adapter ended."""

    CONTINUES = 0
    NOT_FINITE = 1
    EXPLODED = 2
    WEIGHTS_NOT_FINITE = 3

    def reason(self, seed: int) -> str:
        """The outcome in words, for the run's record."""
        what = {
            FitOutcome.NOT_FINITE: "its loss left the finite numbers",
            FitOutcome.EXPLODED: f"its loss stayed above {EXPLODED:g} times its start for {PATIENCE} steps",
            FitOutcome.WEIGHTS_NOT_FINITE: "its last step left the finite numbers",
        }
        return f"training of the pair with seed {seed} diverged: {what[self]}."


@dataclass(frozen=True, slots=True, eq=False)
class FitInput:
    """What a fit learns from for one adapter: clean latents (the picture to learn first), the text as one row of what `Family.encode`
    returns, and the seed of the fit.
    """

    pictures: tuple[Tensor, ...]
    conditions: Mapping[str, Tensor]
    seed: int


def input_losses(
    context: FitContext, inputs: Sequence[FitInput], uniform: Tensor, noise: Tensor, phi: PackedLora, loss: Loss = denoising_loss
) -> Tensor:
    """The loss of every input ``[inputs]``, with gradient.

    Args:
        context: what they share.
        inputs: one for each adapter of ``phi``, in its order.
        uniform: ``[inputs, n]``, the quantiles of the noise levels.
        noise: ``[inputs, n, ...]``.
        phi: the adapters.
        loss: what is minimised.
    """
    count, epsilon = uniform.shape[1], noise.flatten(0, 1)
    pictures = tuple(
        _rows([latents[None] for latents in each], count).to(epsilon) for each in zip(*(i.pictures for i in inputs), strict=True)
    )
    conditions = {name: _rows([each.conditions[name] for each in inputs], count) for name in inputs[0].conditions}
    values = loss(context, LossRows(pictures, conditions, uniform.flatten(), epsilon), phi)
    return values.unflatten(0, (len(inputs), count)).flatten(1).mean(1)


def _rows(parts: Sequence[Tensor], count: int) -> Tensor:
    """``count`` copies of every part, those of one input together."""
    return torch.cat(list(parts)).repeat_interleave(count, dim=0)


class Fit:
    """A fit in progress: adapters, optimiser, generators and losses of the inputs still trained, and the record of all inputs."""

    def __init__(
        self,
        context: FitContext,
        inputs: Sequence[FitInput],
        rank: int,
        steps: int,
        frozen_base: PackedLora | None = None,
        loss: Loss = denoising_loss,
    ) -> None:
        self._context, self._all, self._steps, self._frozen_base, self._loss = context, inputs, steps, frozen_base, loss
        denoiser = context.family.denoiser
        weight = next(denoiser.parameters())
        self._precision = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        self.alive = list(range(len(inputs)))
        self.outcomes = [FitOutcome.CONTINUES] * len(inputs)
        self.losses: list[list[float]] = [[] for _ in inputs]
        self._probed: list[list[float]] = [[] for _ in inputs]
        self._above = [0] * len(inputs)
        self._generators = [torch.Generator().manual_seed(each.seed + 1) for each in inputs]
        self._use(PackedLora.fresh(denoiser, context.family.lora_targets, rank, [each.seed for each in inputs], frozen_base))

    def run(self, journal: FitJournal, name: str) -> None:
        """Make all steps, or the remaining ones of a fit that the journal has a state of."""
        known = journal.recall(name)
        if known is not None:
            self._load(known)
        else:
            self._probe()
        late = max(1, 3 * self._steps // 4)
        while self.alive and self._done < self._steps:
            self._step()
            for _ in range((self._done == late) + (self._done == self._steps) if self.alive else 0):
                self._probe()
            journal.save_if_due(name, self._state)
            losses = [self.losses[index][-1] for index in self.alive]
            journal.report(FitStep(name, self._done, self._steps, len(losses), sum(losses) / max(1, len(losses))))
        self._drop({k: FitOutcome.WEIGHTS_NOT_FINITE for k, finite in zip(self.alive, self.phi.finite(), strict=True) if not finite})
        journal.finish(name, self._state(optimizer=False))

    def probes(self, index: int) -> ProbeLosses:
        """The probe losses of an input that did not diverge."""
        return ProbeLosses(*self._probed[index])

    @property
    def _done(self) -> int:
        return max(len(history) for history in self.losses)

    def _step(self) -> None:
        uniform = torch.stack([torch.rand(self._context.batch, generator=generator) for generator in self._generators])
        quantiles = (torch.arange(self._context.batch) + uniform) / self._context.batch  # stratified: less variance in a step
        loss = self._losses(quantiles, self._generators)
        self._optimizer.step(torch.autograd.grad(loss.sum(), self.phi.parameters()))  # the sum: every pair's gradient is its own
        diverged: dict[int, FitOutcome] = {}
        for index, value in zip(self.alive, loss.tolist(), strict=True):
            self.losses[index].append(value)
            self._above[index] = self._above[index] + 1 if value > EXPLODED * self._probed[index][0] else 0
            if not math.isfinite(value):
                diverged[index] = FitOutcome.NOT_FINITE
            elif self._above[index] >= PATIENCE:
                diverged[index] = FitOutcome.EXPLODED
        self._drop(diverged)

    @torch.no_grad()
    def _probe(self) -> None:
        """The loss at the middles of `PROBES` quantiles, with noise of separate generators, in forwards of ``batch`` rows."""
        generators = [torch.Generator().manual_seed(self._all[index].seed + 2**62) for index in self.alive]
        middles = (torch.arange(PROBES) + 0.5) / PROBES
        parts = [part.expand(len(self.alive), -1) for part in middles.split(self._context.batch)]
        losses = sum(self._losses(part, generators).double() * part.shape[1] / PROBES for part in parts)
        values = dict(zip(self.alive, torch.as_tensor(losses).tolist(), strict=True))
        for index, value in values.items():
            self._probed[index].append(value)
        self._drop({index: FitOutcome.NOT_FINITE for index, value in values.items() if not math.isfinite(value)})

    def _losses(self, quantiles: Tensor, generators: Iterable[torch.Generator]) -> Tensor:
        inputs = [self._all[index] for index in self.alive]
        shape = (quantiles.shape[1], *inputs[0].pictures[0].shape)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return input_losses(self._context, inputs, quantiles, noise.to(**self._precision), self.phi, self._loss)

    def _use(self, phi: PackedLora) -> None:
        self.phi = phi
        self._optimizer = Optimizer(phi, self._context.learning_rate)

    def _drop(self, diverged: Mapping[int, FitOutcome]) -> None:
        """Remove these inputs from the fit; the others are not affected."""
        if not diverged:
            return
        rows = torch.tensor([row for row, index in enumerate(self.alive) if index not in diverged], dtype=torch.long)
        for index, outcome in diverged.items():
            self.outcomes[index] = outcome
        record = ("losses", "probes", "fates", "above", "adam_steps")
        self._load({name: t if name in record else t[rows.to(t.device)] for name, t in self._state().items()})

    def _state(self, optimizer: bool = True) -> FitState:
        """Everything the fit continues from; all but the record has one row for each input that is still trained."""
        steps = self._done
        state = {
            "alive": torch.tensor(self.alive, dtype=torch.long),
            "fates": torch.tensor(self.outcomes, dtype=torch.long),
            "above": torch.tensor(self._above, dtype=torch.long),
            "losses": torch.tensor([h + [math.nan] * (steps - len(h)) for h in self.losses], dtype=torch.float64),
            "probes": torch.tensor([h + [math.nan] * (3 - len(h)) for h in self._probed], dtype=torch.float64),
        } | self.phi.state()
        if not optimizer or not self.alive:
            return state
        state["generators"] = torch.stack([generator.get_state() for generator in self._generators])
        return state | self._optimizer.state()

    def _load(self, state: FitState) -> None:
        self.alive = state["alive"].tolist()
        self.outcomes = [FitOutcome(number) for number in state["fates"].tolist()]
        self._above = state["above"].tolist()
        self.losses, self._probed = (
            [[value for value in row if not math.isnan(value)] for row in state[name].tolist()] for name in ("losses", "probes")
        )
        frozen_base = None if self._frozen_base is None else self._frozen_base.pick(self.alive)
        self._use(self.phi.like(state, frozen_base))
        self._generators = [torch.Generator() for _ in self.alive]
        for generator, row in zip(self._generators, state.get("generators", ()), strict=False):  # a finished fit keeps none
            generator.set_state(row.clone())  # a view with an offset crashes PyTorch
        self._optimizer.load(state)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While open, the base takes no gradients, which saves half of the backward pass."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
