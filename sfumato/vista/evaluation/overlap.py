"""Overlap of boxes. A separate module, so that judging pictures does not import the diffusion libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sfumato.types import Box
from sfumato.vista.evaluation.detector import Detection


def composition_iou(before: Sequence[Mapping[str, Detection]], after: Sequence[Mapping[str, Detection]]) -> float:
    """Mean box overlap of the kinds found before; a kind lost afterwards counts 0."""
    values = [iou(d.box, b[kind].box) if kind in b else 0.0 for a, b in zip(before, after, strict=True) for kind, d in a.items()]
    return float(np.mean(values)) if values else float("nan")


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / max(1, (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
