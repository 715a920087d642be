"""How many pairs fit the memory of one step: counted from the tensors a step keeps, never from the memory that is free."""

from __future__ import annotations

import torch
from torch import Tensor

from services.trainer.fit import FitInput, input_losses
from services.trainer.loss import FitContext, Loss, denoising_loss
from sfumato.errors import InvalidInput
from sfumato.lora.packed import PackedLora

# Copies of an adapter's factors a pair needs: themselves, their gradients, two moments of Adam, and the frozen base.
COPIES = 5


def pack_size(context: FitContext, like: FitInput, rank: int, budget: int, loss: Loss = denoising_loss) -> int:
    """How many pairs like this one can be trained together in ``budget`` bytes beside the model; the same on every machine.

    Raises:
        InvalidInput: not even one can.
    """
    needed = pair_bytes(context, like, rank, loss)
    if needed > budget:
        raise InvalidInput("memory", f"one pair of rank {rank} needs {needed} bytes, the budget is {budget}.", hint="Lower the batch.")
    return budget // needed


def pair_bytes(context: FitContext, like: FitInput, rank: int, loss: Loss = denoising_loss) -> int:
    """Bytes one pair adds to a step: all that the forward keeps for the backward, and its adapters with their optimiser."""
    denoiser = context.family.denoiser
    seeds, targets = [like.seed], context.family.lora_targets
    phi = PackedLora.fresh(denoiser, targets, rank, seeds, PackedLora.fresh(denoiser, targets, rank, seeds))
    model = {tensor.untyped_storage().data_ptr() for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in model:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    uniform = torch.full([1, context.batch], 0.5)
    noise = torch.zeros(1, context.batch, *like.pictures[0].shape, dtype=phi.parameters()[0].dtype, device=like.pictures[0].device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = input_losses(context, [like], uniform, noise, phi, loss)
    del value  # until here it held what was counted, so no address was used twice
    return sum(kept.values()) + COPIES * sum(factor.nbytes for factor in phi.parameters())
