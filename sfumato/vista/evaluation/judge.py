"""The independent judge of finish, object by object and the sky apart. For evaluation only: no stage of a run may see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.types import Image
from sfumato.vista.evaluation import convnet
from sfumato.vista.evaluation.convnet import WIDTHS, Backbone, attend


class Opinion(NamedTuple):
    """What the network says: which kind each cell shows, how it is finished there, and each kind's finish as a whole."""

    cells: Tensor
    """Logits ``[batch, kinds, 16, 16]``, the sky first."""
    cell_finish: Tensor
    """Logits ``[batch, kinds, 16, 16]``."""
    finish: Tensor
    """Logits ``[batch, kinds]``."""


class JudgeNet(nn.Module):
    """Every kind looks at its own cells and takes the mean of what they say about its finish."""

    def __init__(self, kinds: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.kinds = kinds
        self.backbone = Backbone(widths)
        self.head = nn.Conv2d(widths[1], kinds * 2, 1)

    def forward(self, pictures: Tensor) -> Opinion:
        """``[batch, 3, 64, 64]`` in -1..1."""
        out = self.head(self.backbone(pictures)).float().unflatten(1, (self.kinds, 2))
        return Opinion(out[:, :, 0], out[:, :, 1], attend(out[:, :, 0], out[:, :, 1:2])[:, :, 0])


class FinishShares(NamedTuple):
    """Mean finish, 0 to 1, of objects and of skies; None where there was none to look at."""

    objects: float | None
    sky: float | None


class Judge(convnet.Shipped):
    """Says how probable the beautiful finish is, for every kind. What it says of kinds that are not there means nothing."""

    part = "judge"

    def __init__(self, net: JudgeNet, kinds: Sequence[str]) -> None:
        self.net, self.kinds = net, tuple(kinds)

    @classmethod
    def from_folder(cls, folder: Path) -> Judge:
        """A judge saved by `save`."""
        config = convnet.read_config(folder)
        net = JudgeNet(len(config["kinds"]), config["widths"])
        convnet.restore(net, folder)
        return cls(net, config["kinds"])

    @torch.inference_mode()
    def finish(self, images: Sequence[Image]) -> list[dict[str, float]]:
        """For every picture and kind (``"sky"`` included) the probability of the beautiful finish."""
        results: list[dict[str, float]] = []
        for start in range(0, len(images), 64):
            opinion = self.net(convnet.to_tensor(images[start : start + 64]))
            results += [dict(zip(self.kinds, row, strict=True)) for row in opinion.finish.sigmoid().tolist()]
        return results


def finish_shares(finish: Sequence[Mapping[str, float]], present: Sequence[Iterable[str]]) -> FinishShares:
    """Mean finish of the objects that are ``present`` (picture by picture, as the detector says) and of the skies, apart.

    Every object counts the same, whatever its size; objects are first averaged over the whole set, not per picture.
    """
    objects = [row[kind] for row, kinds in zip(finish, present, strict=True) for kind in kinds if kind != "sky"]
    skies = [row["sky"] for row in finish]
    return FinishShares(sum(objects) / len(objects) if objects else None, sum(skies) / len(skies) if skies else None)


def save(net: JudgeNet, kinds: Sequence[str], folder: Path, widths: Sequence[int] = WIDTHS) -> None:
    """Write a folder for `Judge.from_folder`."""
    config = {"model": "sfumato-vista-judge", "version": "1", "picture": convnet.PICTURE, "widths": list(widths)}
    convnet.save(net, config | {"kinds": list(kinds)}, folder)
