"""Boxes in pixels to masks over latent cells."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.types import Box


def cell_mask(box: Box, width: int, height: int, cell: int, soft: float = 0.0) -> Tensor:
    """The mask M_i of a box over the latent cells of ``cell x cell`` pixels, ``[height / cell, width / cell]``, float32.

    Binary by default: one where the box touches the cell, so a box of one pixel still covers one. With ``soft > 0``, the share of
    each cell that is in the box, after the box's edges were blurred to ramps ``soft`` pixels wide; next to nothing gives the bare
    coverage. An edge that lies on the picture's border is never softened: there is nothing beyond it to blend into.
    """
    x1, y1, x2, y2 = box
    return torch.outer(_cells(y1, y2, height, cell, soft), _cells(x1, x2, width, cell, soft)).float()


def _cells(start: int, end: int, size: int, cell: int, soft: float) -> Tensor:
    """The same along one axis, float64."""
    count = size // cell
    if soft == 0:
        mask = torch.zeros(count, dtype=torch.float64)
        mask[start // cell : -(-end // cell)] = 1
        return mask
    first = start if start > 0 else -soft
    last = end if end < size else size + soft
    borders = torch.arange(count + 1, dtype=torch.float64) * cell
    return ((_risen(borders - first, soft) - _risen(borders - last, soft)).diff() / cell).clamp(0, 1)


def _risen(distance: Tensor, soft: float) -> Tensor:
    """The integral up to ``distance`` of a ramp from 0 to 1, ``soft`` wide and centred on 0."""
    ramp = (distance + soft / 2).clamp(0, soft)
    return ramp.square() / (2 * soft) + (distance - soft / 2).clamp_min(0)
