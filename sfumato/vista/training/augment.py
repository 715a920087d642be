"""What a generator does to pictures, imitated on rendered ones: blur, noise, faint smudges, shifted colours, bent shapes.

The detector and the judge must be right on generated pictures too; scorers see such pictures as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Degrade = Callable[[Tensor, torch.Generator], Tensor]


def degrade(pictures: Tensor, source: torch.Generator, strength: float = 1.0) -> Tensor:
    """Pictures ``[batch, 3, size, size]`` in -1..1, a fifth of them untouched, the others each degraded in their own way."""
    x = _bend(pictures, source, strength)
    x = _blur(x, source, strength)
    x = _soften(x, source)
    x = _tint(x, source, strength)
    x = _smudge(x, source, strength)
    touched = _chance(x, source, 0.8)
    return torch.where(touched, x, pictures).clamp(-1, 1)


def _uniform(x: Tensor, source: torch.Generator, low: float, high: float, channels: int = 1) -> Tensor:
    return torch.rand(len(x), channels, 1, 1, generator=source) * (high - low) + low


def _chance(x: Tensor, source: torch.Generator, share: float) -> Tensor:
    return torch.rand(len(x), 1, 1, 1, generator=source) < share


def _bend(x: Tensor, source: torch.Generator, strength: float) -> Tensor:
    """Move pixels along a smooth field of up to about one pixel."""
    size = x.shape[-1]
    field = torch.randn(len(x), 2, 6, 6, generator=source) * (1.2 / size) * strength * _uniform(x, source, 0, 1)
    field = F.interpolate(field, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    line = (torch.arange(size) * 2 + 1) / size - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    return F.grid_sample(x, grid + field, padding_mode="border", align_corners=False)


def _blur(x: Tensor, source: torch.Generator, strength: float) -> Tensor:
    """Between slightly sharpened and blurred by a 3 x 3 binomial kernel."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return x + (blurred - x) * _uniform(x, source, -0.5, 1.4) * strength


def _soften(x: Tensor, source: torch.Generator) -> Tensor:
    """A third of the pictures lose resolution: down to half or three quarters and up again."""
    for share, scale in ((0.12, 0.5), (0.2, 0.75)):
        small = F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)
        again = F.interpolate(small, x.shape[-2:], mode="bicubic", align_corners=False)
        x = torch.where(_chance(x, source, share), again, x)
    return x


def _tint(x: Tensor, source: torch.Generator, strength: float) -> Tensor:
    """Brightness, contrast, saturation and the balance of the channels."""
    mean, grey = x.mean((1, 2, 3), keepdim=True), x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + strength * _uniform(x, source, -0.2, 0.2))
    x = mean + (x - mean) * (1 + strength * _uniform(x, source, -0.15, 0.15))
    return x + strength * (_uniform(x, source, -0.1, 0.1) + _uniform(x, source, -0.05, 0.05, channels=3))


def _smudge(x: Tensor, source: torch.Generator, strength: float) -> Tensor:
    """Noise of pixels and of larger spots."""
    fine = torch.randn(x.shape, generator=source) * _uniform(x, source, 0, 0.08)
    spots = torch.randn(len(x), 3, 16, 16, generator=source) * _uniform(x, source, 0, 0.10)
    return x + strength * (fine + F.interpolate(spots, x.shape[-2:], mode="bilinear", align_corners=False))
