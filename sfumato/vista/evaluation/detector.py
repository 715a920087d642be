"""The independent detector of objects. For evaluation only: no stage of a run may see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.types import Box, Image
from sfumato.vista.evaluation import convnet
from sfumato.vista.evaluation.convnet import CELLS, WIDTHS, Backbone, attend


@dataclass(frozen=True, slots=True)
class Detection:
    """One object found: how sure the detector is (0 to 1), and where, in pixels of the picture given."""

    score: float
    box: Box


class Found(NamedTuple):
    """What the network says: logits of cells and of presence, and boxes as shares of the side."""

    cells: Tensor
    """``[batch, kinds, 16, 16]``"""
    presence: Tensor
    """``[batch, kinds]``"""
    boxes: Tensor
    """``[batch, kinds, 4]``"""


class DetectorNet(nn.Module):
    """Every kind looks at its own cells; each cell tells the distances to the four sides of the kind's box."""

    def __init__(self, kinds: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.kinds = kinds
        self.backbone = Backbone(widths)
        self.head = nn.Conv2d(widths[1], kinds * 6, 1)
        middles = (torch.arange(CELLS) + 0.5) / CELLS
        x, y = torch.meshgrid(middles, middles, indexing="xy")
        self.middles: Tensor
        self.register_buffer("middles", torch.stack([x, y, x, y]), persistent=False)

    def forward(self, pictures: Tensor) -> Found:
        """``[batch, 3, 64, 64]`` in -1..1."""
        out = self.head(self.backbone(pictures)).float().unflatten(1, (self.kinds, 6))
        pooled = attend(out[:, :, 0], torch.cat([out[:, :, 1:2], self.middles + out[:, :, 2:] * 0.25], 2))
        return Found(out[:, :, 0], pooled[:, :, 0], pooled[:, :, 1:])


class Detector(convnet.Shipped):
    """Finds each kind of object at most once per picture."""

    part = "detector"

    def __init__(self, net: DetectorNet, kinds: Sequence[str], thresholds: Sequence[float]) -> None:
        self.net, self.kinds, self.thresholds = net, tuple(kinds), tuple(thresholds)

    @classmethod
    def from_folder(cls, folder: Path) -> Detector:
        """A detector saved by `save`."""
        config = convnet.read_config(folder)
        net = DetectorNet(len(config["kinds"]), config["widths"])
        convnet.restore(net, folder)
        return cls(net, config["kinds"], config["thresholds"])

    @torch.inference_mode()
    def detect(self, images: Sequence[Image]) -> list[dict[str, Detection]]:
        """For every picture what was found, by kind: only kinds at or above the calibrated threshold."""
        results: list[dict[str, Detection]] = []
        for start in range(0, len(images), 64):
            chunk = images[start : start + 64]
            found = self.net(convnet.to_tensor(chunk))
            for image, scores, boxes in zip(chunk, found.presence.sigmoid().tolist(), found.boxes.tolist(), strict=True):
                results.append(
                    {
                        kind: Detection(score, _pixels(box, image.shape[1], image.shape[0]))
                        for kind, score, threshold, box in zip(self.kinds, scores, self.thresholds, boxes, strict=True)
                        if score >= threshold
                    }
                )
        return results


def save(net: DetectorNet, kinds: Sequence[str], thresholds: Sequence[float], folder: Path, widths: Sequence[int] = WIDTHS) -> None:
    """Write a folder for `Detector.from_folder`."""
    config = {"model": "sfumato-vista-detector", "version": "1", "picture": convnet.PICTURE, "widths": list(widths)}
    convnet.save(net, config | {"kinds": list(kinds), "thresholds": [round(t, 4) for t in thresholds]}, folder)


def _pixels(box: Sequence[float], width: int, height: int) -> Box:
    x1, y1, x2, y2 = (round(share * side) for share, side in zip(box, (width, height, width, height), strict=True))
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return x1, y1, min(max(x2, x1 + 1), width), min(max(y2, y1 + 1), height)
