"""The processes that share one training: what they tell one another, and nothing of how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sfumato.runtime.failures import Failure


class Group(Protocol):
    """Some processes that all make the same calls in the same order. The first of them, with rank 0, leads.

    Raises:
        Unavailable: by every method, when one of the others is gone.
    """

    rank: int
    size: int

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensor, all of one shape, in the order of the ranks."""
        ...

    def tell(self, data: bytes) -> bytes:
        """What the leader has to say; of the others nothing is asked."""
        ...

    def hear(self, word: str) -> list[str]:
        """Everybody's word, in the order of the ranks."""
        ...


class Alone:
    """The group of one process."""

    rank, size = 0, 1

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See `Group`."""
        return [tensor]

    def tell(self, data: bytes) -> bytes:
        """See `Group`."""
        return data

    def hear(self, word: str) -> list[str]:
        """See `Group`."""
        return [word]


def all_well(group: Group, error: Exception | None) -> None:
    """Go on together or not at all: whoever has failed says so here, and everybody raises.

    Raises:
        Exception: this process's own failure, or else the first of the others'.
    """
    words = group.hear("" if error is None else Failure.of(error).model_dump_json())
    if error is not None:
        raise error
    for word in words:
        if word:
            raise Failure.model_validate_json(word).error()


def summed(group: Group, part: Callable[[int], Tensor], count: int, nothing: Callable[[], Tensor]) -> Tensor:
    """The sum of ``part(0) .. part(count - 1)``, the same to the last bit for every number of processes.

    The parts are the leaves of one binary tree, which is cut by halves whoever computes them: with a power of two of processes that
    divides ``count``, each has a whole branch, and only the branches' sums travel. Where there are more processes, or another
    number of them, as many work as can; the others look on.

    Args:
        group: everybody in it makes this call and has the whole sum in the end.
        part: computes one leaf; called for this process's own alone, and never twice.
        count: how many leaves there are.
        nothing: zeros of a leaf's shape, for who looks on.
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
    """All numbers of some tensors in one."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def shaped(numbers: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """What `flat` made one, taken apart again."""
    parts = numbers.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
