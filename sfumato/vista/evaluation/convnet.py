"""The small convolutional network under the detector and the judge.

Convolutions only, so that what grades the system shares no architecture with what the system runs on (transformers).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.errors import BrokenWeights
from sfumato.types import Image
from sfumato.vista import weights

PICTURE = 64
CELLS = 16
WIDTHS = (32, 64, 64)
"""Channels of the fine, the middle and the coarse grid."""
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class Block(nn.Module):
    """A residual block: one normalisation, two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to the same shape."""
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class Backbone(nn.Module):
    """Pictures to features on a 16 x 16 grid, with context from 8 x 8."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = nn.Conv2d(5 * 4, fine, 3, padding=1)
        self.middle = nn.Sequential(nn.Conv2d(fine, middle, 3, stride=2, padding=1), Block(middle), Block(middle))
        self.coarse = nn.Sequential(nn.Conv2d(middle, coarse, 3, stride=2, padding=1), Block(coarse), Block(coarse), Block(coarse))
        self.lateral = nn.Conv2d(coarse, middle, 1)
        self.fuse = nn.Sequential(Block(middle), nn.GroupNorm(8, middle), nn.SiLU())
        self.coordinates: Tensor
        line = torch.linspace(-1, 1, PICTURE)
        self.register_buffer("coordinates", torch.stack(torch.meshgrid(line, line, indexing="xy"))[None], persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """``[batch, 3, 64, 64]`` in -1..1 to ``[batch, widths[1], 16, 16]``."""
        x = torch.cat([pictures, self.coordinates.expand(len(pictures), -1, -1, -1)], 1)
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        x = self.middle(F.silu(self.stem(x)))
        context = self.lateral(self.coarse(F.silu(x)))
        return self.fuse(x + F.interpolate(context, scale_factor=2.0))


def attend(logits: Tensor, values: Tensor) -> Tensor:
    """Mean of ``values [batch, kinds, n, 16, 16]`` under the softmax over cells of ``logits [batch, kinds, 16, 16]``."""
    shares = logits.flatten(2).softmax(-1)
    return (values.flatten(3) * shares[:, :, None]).sum(-1)


class Shipped(ABC):
    """What looks at pictures with a network of this package."""

    part: ClassVar[str]
    """The name of its folder among the shipped weights."""

    @classmethod
    def load(cls, root: Path = weights.ROOT) -> Self:
        """The shipped one.

        Raises:
            MissingWeights, BrokenWeights: the files are absent or damaged.
        """
        return cls.from_folder(weights.locate(cls.part, root))

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path) -> Self:
        """One of a training's own."""


def to_tensor(images: Sequence[Image]) -> Tensor:
    """Pictures of any size to ``[batch, 3, 64, 64]`` in -1..1."""
    batch = []
    for image in images:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        if x.shape[-2:] != (PICTURE, PICTURE):
            x = F.interpolate(x, (PICTURE, PICTURE), mode="bicubic", antialias=True).clamp(-1, 1)
        batch.append(x)
    return torch.cat(batch)


def save(net: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Write ``config.json`` and the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, folder / WEIGHTS)


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
        BrokenWeights: it cannot be read.
    """
    try:
        return json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise BrokenWeights(f"{folder / CONFIG} cannot be read.", hint="Reinstall the package.") from error


def restore(net: nn.Module, folder: Path) -> None:
    """Load the weights of a folder into ``net``, in single precision, for evaluation.

    Raises:
        BrokenWeights: the file cannot be read, or does not fit.
    """
    try:
        net.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BrokenWeights(f"{folder / WEIGHTS} cannot be read.", hint="Reinstall the package.") from error
    net.eval().requires_grad_(False)
