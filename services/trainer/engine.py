"""Differential training (ArtAug section 3.3): from a kept pair (X, X') to the adapter that holds their difference.

``phi_1 = argmin E[L]`` on X from theta; ``phi_2 = argmin E[L]`` on X' from ``theta + phi_1``, phi_1 frozen; phi_1 is dropped:
what makes the model know this very picture goes with it, what made X' better than X stays in phi_2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from sfumato.diffusion.families import Family, family_of
from sfumato.errors import Diverged, InvalidInput
from sfumato.lora.adapter import Adapter
from sfumato.lora.packed import PackedLora

# Streams of one pair's seed: what phi_1 and phi_2 start from and see must not repeat each other.
BEFORE, AFTER = 0, 1


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How one adapter is trained. The defaults are Vista's; the paper's for FLUX.1[dev] are lr 1e-4, batch 1, 400 steps."""

    objective: Literal["differential", "naive"] = "differential"
    rank: int = 8
    learning_rate: float = 1e-3
    # (t, noise) draws of the one picture in a step.
    batch: int = 4
    steps_before: int = 120
    steps_after: int = 120
    # The embedded guidance a guidance-distilled model is trained at.
    guidance: float = 1.0
    # t = sigmoid(normal(mean, deviation)): where the draws of sigma fall.
    logit_mean: float = 0.0
    logit_deviation: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A kept pair: final packed latents ``[tokens, channels]`` of X and X', painted from ``prompt`` at ``width x height``."""

    prompt: str
    before: Tensor
    after: Tensor
    seed: int
    width: int = 64
    height: int = 64


@dataclass(frozen=True, slots=True, eq=False)
class TrainedPair:
    """The adapter kept (phi_2), and the loss of every step, those of phi_1 first."""

    adapter: Adapter
    losses: tuple[float, ...]


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
        Diverged: the loss left the finite numbers.
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
    on_step: Callable[[int, int], None] | None = None,
) -> list[TrainedPair | Diverged]:
    """Train one adapter for each pair, all pairs of the call in the same forwards, each as if it were alone.

    Noise, times and starting values of a pair come from its own seed. A pair that diverges is returned as the reason and takes
    nobody with it. The pipeline's weights are not written and carry no adapter afterwards: call it as often as there is work.
    ``on_step`` is told ``(steps done, steps in all)``.

    Raises:
        InvalidInput: pairs of different sizes, latents of another shape than their size asks, settings out of range.
    """
    family = family_of(pipeline)
    _check(pairs, settings, family)
    session = _Session(family, pairs, settings, on_step)
    before = torch.stack([pair.before for pair in pairs])
    after = torch.stack([pair.after for pair in pairs])
    with _frozen(family.denoiser):
        if settings.objective == "naive":
            phi = session.fit(after, settings.steps_after, AFTER)
        else:
            learned = session.fit(before, settings.steps_before, BEFORE)
            phi = session.fit(after, settings.steps_after, AFTER, learned)
    return [_result(phi, index, pair, session.losses[index], settings) for index, pair in enumerate(pairs)]


class _Session:
    """What both fits of a call share: texts encoded once, the model's other inputs, and the losses so far."""

    def __init__(
        self, family: Family, pairs: Sequence[Pair], settings: TrainSettings, on_step: Callable[[int, int], None] | None
    ) -> None:
        self.family, self.pairs, self.settings, self.on_step = family, pairs, settings, on_step
        self.losses: list[list[float]] = [[] for _ in pairs]
        self.device = next(family.denoiser.parameters()).device
        texts = family.encode([pair.prompt for pair in pairs])
        self.conditions = {name: text.repeat_interleave(settings.batch, dim=0) for name, text in texts.items()}

    def fit(self, latents: Tensor, steps: int, stream: int, under: PackedLora | None = None) -> PackedLora:
        """Fit a new adapter for each pair to ``latents`` ``[pairs, tokens, channels]`` by flow matching (section 3.3)."""
        settings = self.settings
        seeds = [_stream_seed(pair.seed, stream) for pair in self.pairs]
        phi = PackedLora.fresh(self.family.denoiser, self.family.lora_targets, settings.rank, seeds, under)
        optimizer = torch.optim.AdamW(phi.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
        generators = [torch.Generator().manual_seed(seed + 1) for seed in seeds]
        target = latents.repeat_interleave(settings.batch, dim=0).to(self.device, torch.float32)
        with phi.attached():
            for _ in range(steps):
                sigma, noise = _draw(generators, settings, target)
                noised = (1 - sigma[:, None, None]) * target + sigma[:, None, None] * noise
                error = self._velocity(noised, sigma) - (noise - target)
                loss = error.square().unflatten(0, (len(self.pairs), -1)).mean(dim=(1, 2, 3))
                optimizer.zero_grad()
                loss.sum().backward()  # the sum: every pair's gradient is its own
                optimizer.step()
                self._record(loss.tolist())
        return phi

    def _velocity(self, noised: Tensor, sigma: Tensor) -> Tensor:
        first = self.pairs[0]
        return self.family.predict(noised, sigma, self.conditions, first.width, first.height, self.settings.guidance).float()

    def _record(self, losses: list[float]) -> None:
        for history, loss in zip(self.losses, losses, strict=True):
            history.append(loss)
        if self.on_step is not None:
            first = 0 if self.settings.objective == "naive" else self.settings.steps_before
            self.on_step(len(self.losses[0]), first + self.settings.steps_after)


def _draw(generators: Sequence[torch.Generator], settings: TrainSettings, like: Tensor) -> tuple[Tensor, Tensor]:
    """Noise levels ``[rows]`` and noise ``[rows, tokens, channels]``; the levels of a pair's step are stratified.

    Each is logit-normal by itself, but the draws of one step share the quantiles between them, which takes variance away.
    """
    sigmas, noises = [], []
    for generator in generators:
        uniform = (torch.arange(settings.batch) + torch.rand(settings.batch, generator=generator)) / settings.batch
        normal = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6)).float()
        sigmas.append(torch.sigmoid(settings.logit_mean + settings.logit_deviation * normal))
        noises.append(torch.randn(settings.batch, *like.shape[1:], generator=generator))
    return torch.cat(sigmas).to(like.device), torch.cat(noises).to(like.device)


def _stream_seed(seed: int, stream: int) -> int:
    return (seed * 4 + stream * 2) % 2**62


def _result(phi: PackedLora, index: int, pair: Pair, losses: list[float], settings: TrainSettings) -> TrainedPair | Diverged:
    if not bool(torch.isfinite(torch.tensor(losses)).all()):
        return Diverged(f"training of the pair with seed {pair.seed} diverged.", hint="Lower the learning rate.")
    metadata = {"objective": settings.objective, "seed": str(pair.seed), "prompt": pair.prompt}
    try:
        return TrainedPair(phi.adapter(index, metadata), tuple(losses))
    except InvalidInput:  # the last step's weights are not finite, though its loss was
        return Diverged(f"training of the pair with seed {pair.seed} diverged at its end.", hint="Lower the learning rate.")


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """The base takes no gradients meanwhile: half of the backward pass is never computed."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _check(pairs: Sequence[Pair], settings: TrainSettings, family: Family) -> None:
    if not pairs:
        raise InvalidInput("pairs", "there are none.")
    if settings.objective not in ("differential", "naive"):
        raise InvalidInput("objective", f"{settings.objective!r} is neither 'differential' nor 'naive'.")
    if min(settings.rank, settings.batch, settings.steps_before, settings.steps_after) < 1:
        raise InvalidInput("settings", "rank, batch and steps must be at least 1.")
    if not 0 < settings.learning_rate < 1:
        raise InvalidInput("learning_rate", f"{settings.learning_rate:g} is not between 0 and 1.")
    width, height = pairs[0].width, pairs[0].height
    shape = family.mask((0, 0, width, height), width, height).shape
    for index, pair in enumerate(pairs):
        if (pair.width, pair.height) != (width, height):
            raise InvalidInput(f"pairs[{index}]", "pairs trained together must have one size.")
        for name in ("before", "after"):
            latents: Tensor = getattr(pair, name)
            if latents.shape != shape:
                raise InvalidInput(f"pairs[{index}].{name}", f"is {tuple(latents.shape)}, the size asks {tuple(shape)}.")
            if not bool(torch.isfinite(latents).all()):
                raise InvalidInput(f"pairs[{index}].{name}", "holds numbers that are not finite.")
