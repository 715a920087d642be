"""How many pairs fit one step's memory: counted from what a step keeps, never from what happens to be free."""

from __future__ import annotations

import torch
from torch import Tensor

from services.trainer.fit import Problem, Subject, pair_losses
from sfumato.errors import InvalidInput
from sfumato.lora.packed import PackedLora

# Copies of an adapter's factors a pair needs: themselves, their gradients, two moments of Adam, and the adapter under them.
COPIES = 5


def pack_size(problem: Problem, subject: Subject, rank: int, budget: int) -> int:
    """How many pairs like ``subject`` can be trained together in ``budget`` bytes beside the model; the same on every machine.

    Raises:
        InvalidInput: not even one can.
    """
    needed = pair_bytes(problem, subject, rank)
    if needed > budget:
        raise InvalidInput("memory", f"one pair of rank {rank} needs {needed} bytes, the budget is {budget}.", hint="Lower the batch.")
    return budget // needed


def pair_bytes(problem: Problem, subject: Subject, rank: int) -> int:
    """Bytes one pair adds to a step: all that the forward keeps for the backward, and its adapters with their optimiser."""
    denoiser = problem.family.denoiser
    seeds, targets = [subject.seed], problem.family.lora_targets
    phi = PackedLora.fresh(denoiser, targets, rank, seeds, PackedLora.fresh(denoiser, targets, rank, seeds))
    model = {tensor.untyped_storage().data_ptr() for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in model:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    uniform = torch.full([1, problem.batch], 0.5)
    noise = torch.zeros(1, problem.batch, *subject.latents.shape, dtype=phi.parameters()[0].dtype, device=subject.latents.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), phi.attached():
        loss = pair_losses(problem, [subject], uniform, noise)
    del loss  # until here it held what was counted, so no address was used twice
    return sum(kept.values()) + COPIES * sum(factor.nbytes for factor in phi.parameters())
