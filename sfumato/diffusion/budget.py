"""How many rows fit in one forward, counted from shapes: the same on every run, whatever memory is free."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfumato.diffusion.families.family import Family


class RowBudget:
    """Rows (pictures, unconditional and region branches) of one forward: ``max_batch``, or fewer where ``memory`` is short.

    ``memory`` is bytes for what a forward needs beside the weights; ``None`` is no limit. It binds the denoiser and the
    autoencoder; one row always goes, however large.
    """

    def __init__(self, family: Family, max_batch: int, memory: int | None = None) -> None:
        self.family, self.max_batch, self.memory = family, max_batch, memory
        self._known: dict[tuple[str, int, int], int] = {}

    def rows(self, width: int, height: int) -> int:
        """Rows of the denoiser for pictures of this size, in pixels."""
        return self._fitting("rows", width, height, lambda: denoiser_bytes(self.family, width, height, self.max_batch))

    def pictures(self, width: int, height: int) -> int:
        """Pictures of this size that the autoencoder decodes at once."""
        return self._fitting("pictures", width, height, lambda: decoder_bytes(self.family, width, height, self.max_batch))

    def _fitting(self, what: str, width: int, height: int, needed: Callable[[], tuple[int, int]]) -> int:
        if self.memory is None:
            return self.max_batch
        key = (what, width, height)
        if key not in self._known:
            fixed, each = needed()
            self._known[key] = max(1, min(self.max_batch, (self.memory - fixed) // max(1, each)))
        return self._known[key]


def denoiser_bytes(family: Family, width: int, height: int, most: int) -> tuple[int, int]:
    """Peak bytes of a forward of the denoiser beside its weights, for 1 to ``most`` rows: those of any, and those of each row."""
    like = next(family.denoiser.parameters())
    text = {name: tensor.to(like) for name, tensor in family.encode(["a"]).items()}
    shape = family.mask((0, 0, width, height), width, height).shape
    levels = family.parameterization.levels(torch.full([1], 0.5)).to(like.device)

    def forward(rows: int) -> Tensor:
        conditions = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in text.items()}
        noised = torch.empty(rows, *shape, device=like.device, dtype=like.dtype)
        return family.predict(noised, levels.expand(rows), conditions, width, height, 1.0)

    return _fixed_and_each(forward, most)


def decoder_bytes(family: Family, width: int, height: int, most: int) -> tuple[int, int]:
    """The same of the autoencoder's decoder, a row being a picture."""
    pipeline: Any = family.pipeline
    cell, channels = pipeline.vae_scale_factor, pipeline.vae.config.latent_channels

    def forward(rows: int) -> Tensor:
        cells = torch.empty(rows, channels, height // cell, width // cell, device=pipeline.vae.device, dtype=pipeline.vae.dtype)
        return pipeline.vae.decode(cells, return_dict=False)[0]

    return _fixed_and_each(forward, most)


def _fixed_and_each(forward: Callable[[int], Tensor], most: int) -> tuple[int, int]:
    """From the peaks of one row and of ``most``; nothing is computed, tensors are shapes only.

    A forward's peak is the largest of many moments, each of them linear in the rows, so what lies between is never above the chord.
    """
    peaks = []
    for rows in (1, max(2, most)):
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), PeakBytes() as live:
            forward(rows)
        peaks.append(live.peak)
    each = -(-(peaks[1] - peaks[0]) // (max(2, most) - 1))
    return peaks[0] - each, each


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors made while it is on and still alive; ``peak`` is the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation, then count the storages it made."""
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), given)
        self.peak = max(self.peak, sum(self._live.values()))
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key not in given and key not in self._live:  # a view of a weight or of a counted storage needs no memory
            self._live[key] = storage.nbytes()
            weakref.finalize(storage, self._live.pop, key, None)
