"""The carriers of data that pass between engines, recipes and the command line.

Images are ``numpy.uint8`` arrays ``[height, width, 3]`` in RGB. Boxes are pixels ``(x1, y1, x2, y2)``, the lower right
corner exclusive, with ``0 <= x1 < x2 <= width`` and ``0 <= y1 < y2 <= height``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Region:
    """One piece of advice: what the picture should show inside ``box`` (ArtAug section 3.1, ``(P_i, M_i)``)."""

    prompt: str
    box: Box


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One picture to paint. Sizes in pixels; ``guidance_scale`` is the model's embedded or classifier-free guidance.

    The regions act in the first ``regional_steps`` of the schedule (1: all of it, as in the paper). ``soft_edges`` is the width in
    pixels over which a region's edges fade (0: binary masks, as in the paper; next to nothing: the bare coverage of latent cells).
    """

    prompt: str
    seed: int
    width: int = 64
    height: int = 64
    steps: int = 20
    guidance_scale: float = 1.0
    regions: tuple[Region, ...] = ()
    regional_steps: float = 1.0
    soft_edges: float = 0.0
