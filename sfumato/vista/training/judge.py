"""Training of the independent detector and judge: their own seeds, their own scenes, their own architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.vista.evaluation import detector, judge
from sfumato.vista.evaluation.detector import DetectorNet
from sfumato.vista.evaluation.judge import JudgeNet
from sfumato.vista.training.augment import degrade
from sfumato.vista.training.loop import Step
from sfumato.vista.training.optim import Muon
from sfumato.vista.training.scenes import LABELS, ScenePool, scene_pool
from sfumato.vista.world import KINDS

SCENES = 24_000
HELD_OUT = 512


def optimizers(model: nn.Module, muon: float, adam: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices and kernels inside the network, AdamW for everything else."""
    matrices, others = [], []
    for name, param in model.named_parameters():
        if param.requires_grad:
            inside = param.ndim >= 2 and min(param.shape[0], param.shape[1:].numel()) >= 16 and "embed" not in name
            (matrices if inside else others).append(param)
    return [Muon(matrices, lr=muon), torch.optim.AdamW(others, lr=adam, weight_decay=0.01)]


class _SceneTask:
    """What the two have in common: pools of scenes, batches of degraded and mirrored pictures."""

    name: str
    average = 0.998

    def __init__(self, seed: int, cache: Path | None, scenes: int, batch: int) -> None:
        self.seed, self.batch = seed, batch
        self.pool = scene_pool(f"{self.name}-{seed}", scenes, cache)
        self.held_out = scene_pool(f"{self.name}-held-out-{seed}", min(scenes, HELD_OUT), cache)

    def draw(self, step: Step) -> tuple[Tensor, ScenePool]:
        """Pictures ``[batch, 3, 64, 64]`` in -1..1, degraded, and their truth; half of them mirrored."""
        rows = torch.randint(len(self.pool), (self.batch,), generator=step.torch)
        truth = _rows(self.pool, rows, mirrored=step.number % 2 == 1)
        pictures = truth.pictures.float() / 127.5 - 1
        return degrade(pictures, step.torch), truth


class DetectorTask(_SceneTask):
    """The detector: which cells show a kind, whether it is there, its box."""

    name = "detector"

    def __init__(
        self, seed: int = 7001, *, cache: Path | None = None, scenes: int = SCENES, batch: int = 48, widths: Sequence[int] = detector.WIDTHS
    ) -> None:
        super().__init__(seed, cache, scenes, batch)
        torch.manual_seed(seed)
        self.widths = tuple(widths)
        self.model = DetectorNet(len(KINDS), widths)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """See `optimizers`."""
        return optimizers(self.model, 0.02, 2e-3)

    def backward(self, step: Step) -> float:
        """One batch."""
        pictures, truth = self.draw(step)
        with torch.autocast("cpu", torch.bfloat16):
            found = self.model(pictures)
        loss = detector_loss(found, truth)
        loss.backward()
        return float(loss.detach())

    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Presence accuracy and mean IoU on held-out scenes, clean and degraded."""
        figures: dict[str, float] = {}
        for name, strength in (("", 0.0), ("_degraded", 1.0)):
            found, truth = self._look(average, strength)
            present = truth.present[:, 1:].bool()
            figures["presence" + name] = ((found.presence > 0) == present).float().mean().item()
            figures["iou" + name] = box_iou(found.boxes[present], truth.boxes[:, 1:][present]).mean().item()
        return figures

    def export(self, average: nn.Module, folder: Path) -> None:
        """Save with the threshold of each kind that errs least on degraded held-out scenes."""
        found, truth = self._look(average, 1.0)
        scores, present = found.presence.sigmoid(), truth.present[:, 1:].bool()
        candidates = torch.linspace(0.05, 0.95, 91)
        right = ((scores[..., None] >= candidates) == present[..., None]).float().mean(0)
        tied = right >= right.max(1, keepdim=True).values - 1e-6
        thresholds = (tied * candidates).sum(1) / tied.sum(1)
        assert isinstance(average, DetectorNet)
        detector.save(average, KINDS, thresholds.tolist(), folder, self.widths)

    @torch.no_grad()
    def _look(self, average: nn.Module, strength: float) -> tuple[detector.Found, ScenePool]:
        pictures = _evaluation_pictures(self.held_out, strength)
        parts = [average(p) for p in pictures.split(128)]
        return detector.Found(*(torch.cat(p) for p in zip(*parts, strict=True))), self.held_out


class JudgeTask(_SceneTask):
    """The judge: which kind a cell shows and how it is finished there, and each kind's finish as a whole."""

    name = "judge"

    def __init__(
        self, seed: int = 8002, *, cache: Path | None = None, scenes: int = SCENES, batch: int = 48, widths: Sequence[int] = judge.WIDTHS
    ) -> None:
        super().__init__(seed, cache, scenes, batch)
        torch.manual_seed(seed)
        self.widths = tuple(widths)
        self.model = JudgeNet(len(LABELS), widths)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """See `optimizers`."""
        return optimizers(self.model, 0.02, 2e-3)

    def backward(self, step: Step) -> float:
        """One batch."""
        pictures, truth = self.draw(step)
        with torch.autocast("cpu", torch.bfloat16):
            opinion = self.model(pictures)
        loss = judge_loss(opinion, truth)
        loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Finish accuracy of objects and of skies on held-out scenes, clean and degraded."""
        figures: dict[str, float] = {}
        truth = self.held_out
        for name, strength in (("", 0.0), ("_degraded", 1.0)):
            said = torch.cat([average(p).finish for p in _evaluation_pictures(truth, strength).split(128)]) > 0
            right, present = (said == truth.beautiful.bool()).float(), truth.present.bool()
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
