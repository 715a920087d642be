"""What a training objective is: samples and parameters of a task in, a training that returns adapters out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from services.trainer.checkpoint import Checkpoint, OnStep
from services.trainer.convergence import ProbeLosses
from services.trainer.group import Group
from sfumato.diffusion.families import Family
from sfumato.errors import Diverged, InvalidInput
from sfumato.lora.adapter import Adapter


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSample:
    """One item of a task: its prompt, the final latents by the names of `Objective.pictures`, its seed (0 where it has none)."""

    prompt: str
    latents: Mapping[str, Tensor]
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TrainedAdapter:
    """The adapter and its rank; the loss of every step, the first fit's first; the probe losses of every fit made.

    Fits whose rank did not converge are in ``probes`` but not in ``losses``.
    """

    adapter: Adapter
    rank: int
    losses: tuple[float, ...]
    probes: tuple[ProbeLosses, ...] = ()


class PreparedTraining(Protocol):
    """A training whose input is checked and prepared."""

    def adapters(
        self, group: Group, checkpoint: bytes | None = None, keep: Checkpoint | None = None, on_step: OnStep = None
    ) -> Sequence[TrainedAdapter | Diverged]:
        """Train; every process of the group makes this call and has the results at the end.

        Args:
            group: the processes that share the work.
            checkpoint: the state to continue from, the same for all processes; None for the beginning.
            keep: where the leader saves the state.
            on_step: is called with every step by this process; an exception it raises ends the training.

        Raises:
            BrokenWeights: the checkpoint is damaged.
            Unavailable: a process of the group is gone.
        """
        ...


class Objective(Protocol):
    """A training objective: its name, the kind of task that asks for it, and the fields of the task's items that are latents."""

    @property
    def name(self) -> str:
        """``params.objective`` of the tasks, and the name in the adapter's metadata."""
        ...

    @property
    def task(self) -> str:
        """The kind of task."""
        ...

    @property
    def pictures(self) -> tuple[str, ...]:
        """The fields of an item that hold latents."""
        ...

    def training(
        self, pipeline: DiffusionPipeline, samples: Sequence[TrainingSample], params: Mapping[str, Any], width: int, height: int
    ) -> PreparedTraining:
        """Check and prepare. The pipeline's weights are not written, neither now nor later.

        Args:
            pipeline: with the adapters of earlier iterations fused.
            samples: all of ``width x height`` pixels.
            params: the objective's own settings by name.
            width: in pixels.
            height: in pixels.

        Raises:
            InvalidInput: latents of another shape than the size requires, settings out of range.
        """
        ...


def check_sample(field: str, prompt: str, latents: Mapping[str, Tensor], family: Family, width: int, height: int) -> None:
    """Refuse a sample that cannot be trained on.

    Raises:
        InvalidInput: the prompt is too long for the model; latents of another shape than the size requires, or not finite.
    """
    shape = family.mask((0, 0, width, height), width, height).shape
    tokens, most = family.count_tokens(prompt), family.limits.prompt_tokens
    if tokens > most:
        raise InvalidInput(f"{field}.prompt", f"has {tokens} tokens, the model reads {most}.", hint="Shorten it.")
    for name, values in latents.items():
        if values.shape != shape:
            raise InvalidInput(f"{field}.{name}", f"is {tuple(values.shape)}, the size asks {tuple(shape)}.")
        if not bool(torch.isfinite(values).all()):
            raise InvalidInput(f"{field}.{name}", "holds numbers that are not finite.")
