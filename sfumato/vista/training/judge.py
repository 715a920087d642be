"""Training of the independent detector and judge: their own seeds, their own scenes, their own architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.vista.evaluation import detector, judge
from sfumato.vista.evaluation.convnet import WIDTHS
from sfumato.vista.evaluation.detector import DetectorNet
from sfumato.vista.evaluation.judge import JudgeNet
from sfumato.vista.training.augment import degrade
from sfumato.vista.training.loop import Step
from sfumato.vista.training.optim import Muon
from sfumato.vista.training.precision import autocast
from sfumato.vista.training.scenes import LABELS, ScenePool, scene_pool
from sfumato.vista.world import KINDS

SCENES = 24_000
HELD_OUT = 512
STRENGTHS = {"": 0.0, "_degraded": 1.0}
"""How pictures are degraded for validation, by the end of its figures' names."""

Said = TypeVar("Said", bound=tuple[Tensor, ...])
"""What a network says of a batch, a named tuple."""


def optimizers(model: nn.Module, muon: float, adam: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices and kernels inside the network, AdamW for everything else."""
    matrices, others = [], []
    for name, param in model.named_parameters():
        if param.requires_grad:
            inside = param.ndim >= 2 and min(param.shape[0], param.shape[1:].numel()) >= 16 and "embed" not in name
            (matrices if inside else others).append(param)
    return [Muon(matrices, lr=muon), torch.optim.AdamW(others, lr=adam, weight_decay=0.01)]


class SceneTask(ABC, Generic[Said]):
    """What the two have in common: pools of scenes, batches of degraded and mirrored pictures, a network of convolutions."""

    name: str
    seed: int
    average = 0.998

    def __init__(
        self, seed: int | None = None, *, cache: Path | None = None, scenes: int = SCENES, batch: int = 48, widths: Sequence[int] = WIDTHS
    ) -> None:
        self.seed, self.batch, self.widths = self.seed if seed is None else seed, batch, tuple(widths)
        self.pool = scene_pool(f"{self.name}-{self.seed}", scenes, cache)
        self.held_out = scene_pool(f"{self.name}-held-out-{self.seed}", min(scenes, HELD_OUT), cache)
        torch.manual_seed(self.seed)
        self.model = self.network()
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @abstractmethod
    def network(self) -> nn.Module:
        """The untrained network, of ``widths``."""

    @abstractmethod
    def loss(self, said: Said, truth: ScenePool) -> Tensor:
        """What the network's words cost."""

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """See `optimizers`."""
        return optimizers(self.model, 0.02, 2e-3)

    def backward(self, step: Step) -> float:
        """One batch: pictures ``[batch, 3, 64, 64]`` in -1..1, degraded, every second batch of them mirrored."""
        rows = torch.randint(len(self.pool), (self.batch,), generator=step.torch)
        truth = _rows(self.pool, rows, mirrored=step.number % 2 == 1)
        pictures = degrade(truth.pictures.float() / 127.5 - 1, step.torch)
        with autocast("cpu"):
            said = self.model(pictures)
        loss = self.loss(said, truth)
        loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def look(self, average: nn.Module, strength: float) -> Said:
        """What is said of all held-out pictures, degraded with a strength of 0 to 1."""
        parts = [average(pictures) for pictures in _evaluation_pictures(self.held_out, strength).split(128)]
        return type(parts[0])(*(torch.cat(part) for part in zip(*parts, strict=True)))


class DetectorTask(SceneTask[detector.Found]):
    """The detector: which cells show a kind, whether it is there, its box."""

    name = "detector"
    seed = 7001

    def network(self) -> DetectorNet:
        """See `DetectorNet`."""
        return DetectorNet(len(KINDS), self.widths)

    def loss(self, said: detector.Found, truth: ScenePool) -> Tensor:
        """See `detector_loss`."""
        return detector_loss(said, truth)

    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Presence accuracy and mean IoU on held-out scenes, clean and degraded."""
        figures: dict[str, float] = {}
        present, boxes = self.held_out.present[:, 1:].bool(), self.held_out.boxes[:, 1:]
        for name, strength in STRENGTHS.items():
            found = self.look(average, strength)
            figures["presence" + name] = ((found.presence > 0) == present).float().mean().item()
            figures["iou" + name] = box_iou(found.boxes[present], boxes[present]).mean().item()
        return figures

    def export(self, average: nn.Module, folder: Path) -> None:
        """Save with the threshold of each kind that errs least on degraded held-out scenes."""
        scores, present = self.look(average, 1.0).presence.sigmoid(), self.held_out.present[:, 1:].bool()
        candidates = torch.linspace(0.05, 0.95, 91)
        right = ((scores[..., None] >= candidates) == present[..., None]).float().mean(0)
        tied = right >= right.max(1, keepdim=True).values - 1e-6
        thresholds = (tied * candidates).sum(1) / tied.sum(1)
        assert isinstance(average, DetectorNet)
        detector.save(average, KINDS, thresholds.tolist(), folder, self.widths)


class JudgeTask(SceneTask[judge.Opinion]):
    """The judge: which kind a cell shows and how it is finished there, and each kind's finish as a whole."""

    name = "judge"
    seed = 8002

    def network(self) -> JudgeNet:
        """See `JudgeNet`."""
        return JudgeNet(len(LABELS), self.widths)

    def loss(self, said: judge.Opinion, truth: ScenePool) -> Tensor:
        """See `judge_loss`."""
        return judge_loss(said, truth)

    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Finish accuracy of objects and of skies on held-out scenes, clean and degraded."""
        figures: dict[str, float] = {}
        beautiful, present = self.held_out.beautiful.bool(), self.held_out.present.bool()
        for name, strength in STRENGTHS.items():
            right = ((self.look(average, strength).finish > 0) == beautiful).float()
            figures["objects" + name] = right[:, 1:][present[:, 1:]].mean().item()
            figures["sky" + name] = right[:, 0].mean().item()
        return figures

    def export(self, average: nn.Module, folder: Path) -> None:
        """See `judge.save`."""
        assert isinstance(average, JudgeNet)
        judge.save(average, LABELS, folder, self.widths)


def detector_loss(found: detector.Found, truth: ScenePool) -> Tensor:
    """Cells, presence, and boxes by distance and by overlap."""
    present, boxes = truth.present[:, 1:].float(), truth.boxes[:, 1:]
    cells = (coverage(truth.labels)[:, 1:] * 4).clamp(max=1.0)
    there = present.bool()
    return (
        10 * F.binary_cross_entropy_with_logits(found.cells, cells)
        + F.binary_cross_entropy_with_logits(found.presence, present)
        + 10 * (found.boxes[there] - boxes[there]).abs().mean()
        + 1
        - box_iou(found.boxes[there], boxes[there]).mean()
    )


def judge_loss(opinion: judge.Opinion, truth: ScenePool) -> Tensor:
    """Kinds of cells, finish of cells, finish as a whole."""
    cells = coverage(truth.labels)
    beautiful, there = truth.beautiful.float(), truth.present.float()
    kinds = -(opinion.cells.log_softmax(1) * cells).sum(1).mean()
    target = beautiful[..., None, None].expand_as(cells)
    local = F.binary_cross_entropy_with_logits(opinion.cell_finish, target, weight=cells, reduction="sum") / cells.sum()
    whole = F.binary_cross_entropy_with_logits(opinion.finish, beautiful, weight=there, reduction="sum") / there.sum()
    return kinds + local + 2 * whole


def coverage(labels: Tensor) -> Tensor:
    """Share of each cell that shows each kind: ``[batch, 64, 64]`` to ``[batch, 11, 16, 16]``."""
    return F.avg_pool2d(F.one_hot(labels.long(), len(LABELS)).movedim(-1, 1).float(), 4)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes ``[n, 4]``, pair by pair."""
    inside = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    sizes = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(1) for x in (a, b)]
    return inside / (sizes[0] + sizes[1] - inside + 1e-6)


def _rows(pool: ScenePool, rows: Tensor, mirrored: bool) -> ScenePool:
    """Some scenes of a pool, left and right swapped where ``mirrored``."""
    pictures, labels, boxes = pool.pictures[rows], pool.labels[rows], pool.boxes[rows]
    if mirrored:
        pictures, labels = pictures.flip(-1), labels.flip(-1)
        boxes = torch.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], -1)
    return ScenePool(pictures, labels, pool.present[rows], pool.beautiful[rows], boxes)


def _evaluation_pictures(pool: ScenePool, strength: float) -> Tensor:
    pictures = pool.pictures.float() / 127.5 - 1
    return degrade(pictures, torch.Generator().manual_seed(1), strength) if strength else pictures
