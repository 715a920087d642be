"""The data types that engines, recipes and the command line exchange.

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
    """One piece of advice: what the picture should show inside ``box`` (ArtAug section 3.1, ``(P_i, M_i)``).

    ``strength`` multiplies its mask (1: the paper's).
    """

    prompt: str
    box: Box
    strength: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A picture to start from instead of noise alone (SDEdit, Meng et al. 2022), of the size of the result.

    It is noised to the level at which ``strength`` of the steps are left, and denoised from there: 0 returns it up to the
    autoencoder's rounding, 1 ignores it. With a ``mask`` (``[height, width]``, 0 or 255), only the marked area is regenerated
    (inpainting); the rest of the picture is kept.
    """

    image: Image
    strength: float
    mask: Image | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One picture to paint. Sizes in pixels; ``guidance_scale`` is the model's embedded or classifier-free guidance.

    The regions act in the first ``regional_steps`` of the schedule (1: all of it, as in the paper). ``soft_edges`` is the width in
    pixels over which a region's edges fade (0: binary masks, as in the paper; close to 0: the plain coverage of latent cells).
    ``condition_noise`` is the standard deviation of normal noise on the prompt's embeddings, drawn from the seed
    (AGFSync: ``x_0 = G(c + n, z_0)``, ``n ~ N(0, sigma^2 I)``); regions' prompts have none. ``negative_prompt`` replaces
    the empty prompt of classifier-free guidance, if the model has it.
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
    condition_noise: float = 0.0
    start: Start | None = None
    negative_prompt: str = ""

    @property
    def masked(self) -> bool:
        """Whether only part of a picture is regenerated."""
        return self.start is not None and self.start.mask is not None

    @property
    def steps_made(self) -> int:
        """The number of executed steps: all, or with a start the share ``strength`` of them, rounded down."""
        return self.steps if self.start is None else int(self.steps * self.start.strength + 1e-9)
