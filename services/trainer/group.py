"""The processes that share one training: what they exchange, without the means of transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sfumato.runtime.failures import Failure


class Group(Protocol):
    """Processes that all make the same calls in the same order. The one with rank 0 leads.

    Raises:
        Unavailable: by every method, if another process is gone.
    """

    rank: int
    size: int

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, of one shape, in the order of the ranks."""
        ...

    def broadcast(self, data: bytes) -> bytes:
        """The leader's data; the argument of the other processes is ignored."""
        ...

    def gather_text(self, text: str) -> list[str]:
        """The texts of all processes, in the order of the ranks."""
        ...


class Alone:
    """The group of one process."""

    rank, size = 0, 1

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See `Group`."""
        return [tensor]

    def broadcast(self, data: bytes) -> bytes:
        """See `Group`."""
        return data

    def gather_text(self, text: str) -> list[str]:
        """See `Group`."""
        return [text]


def raise_together(group: Group, error: Exception | None) -> None:
    """Raise in every process if one has failed; each process makes this call with its own error, or None.

    Raises:
        Exception: this process's own failure, or else the first of the others'.
    """
    texts = group.gather_text("" if error is None else Failure.of(error).model_dump_json())
    if error is not None:
        raise error
    for text in texts:
        if text:
            raise Failure.model_validate_json(text).error()


def summed(group: Group, part: Callable[[int], Tensor], count: int, nothing: Callable[[], Tensor]) -> Tensor:
    """The sum of ``part(0) .. part(count - 1)``, the same to the last bit for every number of processes.

    The parts are the leaves of one binary tree, which is cut into halves independently of the processes. With a power of two of processes
    that divides ``count``, each sums a whole branch, and only the branches' sums are exchanged. Of any other number of processes, the
    largest such power of two works; the others wait.

    Args:
        group: each of its processes makes this call and has the whole sum at the end.
        part: computes one leaf; called for the leaves of this process only, once each.
        count: how many leaves there are.
        nothing: zeros of a leaf's shape, for the processes that wait.
    """
    working = workers(group.size, count)
    share = count // working
    own = _tree(part, group.rank * share, (group.rank + 1) * share) if group.rank < working else nothing()
    branches = group.gather(own)[:working]
    return _tree(branches.__getitem__, 0, working)


def workers(size: int, count: int) -> int:
    """How many of ``size`` processes can share ``count`` parts: the largest power of two that divides them."""
    working = 1
    while working * 2 <= size and count % (working * 2) == 0:
        working *= 2
    return working


def _tree(part: Callable[[int], Tensor], start: int, end: int) -> Tensor:
    if end - start == 1:
        return part(start)
    middle = (start + end) // 2
    return _tree(part, start, middle) + _tree(part, middle, end)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of some tensors in one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def shaped(numbers: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flat`: tensors of the shapes of ``like``."""
    parts = numbers.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
