"""Differential training (ArtAug section 3.3): from a kept pair (X, X') to the adapter that holds their difference.

``phi_1 = argmin E[L]`` on X from theta; ``phi_2 = argmin E[L]`` on X' from ``theta + phi_1``, phi_1 frozen; phi_1 is dropped:
what makes the model know this very picture goes with it, what made X' better than X stays in phi_2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from services.trainer.checkpoint import Checkpoint, Journal, Step
from services.trainer.convergence import RANKS, ProbeLosses
from services.trainer.fit import Fate, Fit, Problem, Subject, frozen
from services.trainer.memory import pack_size
from sfumato.diffusion.families import Family, family_of
from sfumato.errors import Diverged, InvalidInput
from sfumato.lora.adapter import Adapter
from sfumato.lora.packed import PackedLora

# Streams of one pair's seed: what phi_1 and phi_2 start from and see must not repeat each other.
BEFORE, AFTER = 0, 1


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How one adapter is trained. The defaults are Vista's; the paper's for FLUX.1[dev] are lr 1e-4, batch 1, 400 steps."""

    # "naive" is Phi(theta, X'): one fit, on X' alone, for comparison.
    objective: Literal["differential", "naive"] = "differential"
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


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A kept pair: final latents of X and X' in the family's layout, painted from ``prompt`` at ``width x height`` pixels."""

    prompt: str
    before: Tensor
    after: Tensor
    seed: int
    width: int = 64
    height: int = 64


@dataclass(frozen=True, slots=True, eq=False)
class TrainedPair:
    """The adapter kept (phi_2) and its rank; the loss of every step, phi_1's first; the probe losses of every fit made.

    Fits whose rank did not converge are in ``probes`` but not in ``losses``.
    """

    adapter: Adapter
    rank: int
    losses: tuple[float, ...]
    probes: tuple[ProbeLosses, ...]


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
) -> TrainedPair:
    """Train one pair; see `train_pairs`. Without width and height, the picture has the model's own size.

    Raises:
        Diverged: the loss exploded or left the finite numbers.
        InvalidInput: as `train_pairs`.
    """
    size = family_of(pipeline).limits.default_size
    pair = Pair(prompt, before, after, seed, width or size, height or size)
    result = train_pairs(pipeline, [pair], settings)[0]
    if isinstance(result, Diverged):
        raise result
    return result


def train_pairs(
    pipeline: DiffusionPipeline,
    pairs: Sequence[Pair],
    settings: TrainSettings,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> list[TrainedPair | Diverged]:
    """Train one adapter for each pair, many pairs in the same forwards, each as if it were alone.

    Noise, times and starting values of a pair come from its own seed. A pair that diverges is returned as the reason and takes
    nobody with it. The pipeline's weights are not written and carry no adapter afterwards: call it as often as there is work.
    With a ``checkpoint``, a call that was killed goes on where it was saved last and ends in the same bytes. ``on_step`` is told of
    every step; what it raises ends the training.

    Raises:
        InvalidInput: pairs of different sizes, latents of another shape than their size asks, settings out of range.
        BrokenWeights: the checkpoint is damaged.
    """
    family = family_of(pipeline)
    _check(pairs, settings, family)
    first = pairs[0]
    problem = Problem(family, first.width, first.height, settings.guidance, settings.batch, settings.learning_rate)
    journal = Journal(checkpoint, on_step)
    with frozen(family.denoiser):
        texts = family.encode([pair.prompt for pair in pairs])
        lines = [_Line(pair, {name: text[k : k + 1] for name, text in texts.items()}, family) for k, pair in enumerate(pairs)]
        size = len(lines)
        if settings.memory is not None:
            size = min(size, pack_size(problem, lines[0].after, max(_ranks(settings)), settings.memory))
        results: list[TrainedPair | Diverged] = []
        for start in range(0, len(lines), size):
            results += _train_pack(problem, lines[start : start + size], settings, journal, f"from {start}")
    return results


class _Line:
    """One pair and what its fits learn from: X for phi_1, X' for phi_2, each with its own stream of the pair's seed."""

    def __init__(self, pair: Pair, conditions: Mapping[str, Tensor], family: Family) -> None:
        device = next(family.denoiser.parameters()).device
        self.pair = pair
        self.before, self.after = (
            Subject(latents.to(device), conditions, (pair.seed * 4 + stream * 2) % 2**62)
            for stream, latents in ((BEFORE, pair.before), (AFTER, pair.after))
        )


def _train_pack(
    problem: Problem, lines: Sequence[_Line], settings: TrainSettings, journal: Journal, name: str
) -> list[TrainedPair | Diverged]:
    """Both fits of some pairs at the smallest rank that converges; who converged goes on, the others try the next rank."""
    naive = settings.objective == "naive"
    steps = settings.steps_after if naive else settings.steps_before
    results: dict[int, TrainedPair | Diverged] = {}
    probes: dict[int, tuple[ProbeLosses, ...]] = {number: () for number in range(len(lines))}
    for rank in _ranks(settings):
        todo = [number for number in range(len(lines)) if number not in results]
        if not todo:
            break
        subjects = [lines[number].after if naive else lines[number].before for number in todo]
        first = Fit(problem, subjects, rank, steps)
        first.run(journal, f"{name}, rank {rank}, first")
        results |= {number: _diverged(lines[number].pair, fate) for number, fate in zip(todo, first.fates, strict=True) if fate}
        probes |= {todo[index]: (*probes[todo[index]], first.probes(index)) for index in first.alive}
        rows = [row for row, index in enumerate(first.alive) if rank == _ranks(settings)[-1] or first.probes(index).converged()]
        chosen = [todo[first.alive[row]] for row in rows]
        history = {number: first.losses[first.alive[row]] for row, number in zip(rows, chosen, strict=True)}
        kept = [(number, first.phi, row) for number, row in zip(chosen, rows, strict=True)]
        if not naive and chosen:
            second = Fit(problem, [lines[number].after for number in chosen], rank, settings.steps_after, first.phi.pick(rows))
            second.run(journal, f"{name}, rank {rank}, second")
            results |= {number: _diverged(lines[number].pair, fate) for number, fate in zip(chosen, second.fates, strict=True) if fate}
            probes |= {chosen[index]: (*probes[chosen[index]], second.probes(index)) for index in second.alive}
            history |= {chosen[index]: history[chosen[index]] + second.losses[index] for index in second.alive}
            kept = [(chosen[index], second.phi, row) for row, index in enumerate(second.alive)]
        for number, phi, row in kept:
            adapter = _adapter(phi, row, lines[number].pair, settings)
            results[number] = TrainedPair(adapter, rank, tuple(history[number]), probes[number])
    return [results[number] for number in range(len(lines))]


def _ranks(settings: TrainSettings) -> tuple[int, ...]:
    return RANKS if settings.rank == "auto" else (settings.rank,)


def _diverged(pair: Pair, fate: Fate) -> Diverged:
    return Diverged(fate.reason(pair.seed), hint="Lower the learning rate.")


def _adapter(phi: PackedLora, row: int, pair: Pair, settings: TrainSettings) -> Adapter:
    return phi.adapter(row, {"objective": settings.objective, "seed": str(pair.seed), "prompt": pair.prompt})


def _check(pairs: Sequence[Pair], settings: TrainSettings, family: Family) -> None:
    if not pairs:
        raise InvalidInput("pairs", "there are none.")
    if settings.objective not in ("differential", "naive"):
        raise InvalidInput("objective", f"{settings.objective!r} is neither 'differential' nor 'naive'.")
    if min(*_ranks(settings), settings.batch, settings.steps_before, settings.steps_after) < 1:
        raise InvalidInput("settings", "rank, batch and steps must be at least 1.")
    if not 0 < settings.learning_rate < 1:
        raise InvalidInput("learning_rate", f"{settings.learning_rate:g} is not between 0 and 1.")
    width, height = pairs[0].width, pairs[0].height
    shape = family.mask((0, 0, width, height), width, height).shape
    for index, pair in enumerate(pairs):
        tokens, most = family.count_tokens(pair.prompt), family.limits.prompt_tokens
        if tokens > most:
            raise InvalidInput(f"pairs[{index}].prompt", f"has {tokens} tokens, the model reads {most}.", hint="Shorten it.")
        if (pair.width, pair.height) != (width, height):
            raise InvalidInput(f"pairs[{index}]", "pairs trained together must have one size.")
        for name in ("before", "after"):
            latents: Tensor = getattr(pair, name)
            if latents.shape != shape:
                raise InvalidInput(f"pairs[{index}].{name}", f"is {tuple(latents.shape)}, the size asks {tuple(shape)}.")
            if not bool(torch.isfinite(latents).all()):
                raise InvalidInput(f"pairs[{index}].{name}", "holds numbers that are not finite.")
