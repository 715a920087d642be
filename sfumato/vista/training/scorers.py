"""Training of the scorers by name, and of the aesthetic head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel

from sfumato.errors import InvalidInput, MissingWeights
from sfumato.scoring.networks import AESTHETIC_HIGH, AESTHETIC_LOW, AestheticPredictor, unit, width_of
from sfumato.vista.training.clip import GROUPS, ClipTask, PairTask, eager
from sfumato.vista.training.loop import Step, TrainingTask
from sfumato.vista.training.pairs import PairPool
from sfumato.vista.training.preferences import MpsTask, PickScoreTask

STARTS = {"aesthetic": "clip", "pickscore": "clip", "mps": "pickscore"}
"""What each part starts from. MPS goes on from the preferences that PickScore has learnt: a third of the training."""


def build(part: str, folder: Path, device: str = "cpu", groups: int = GROUPS, **sizes: int) -> TrainingTask:
    """The task of ``clip``, ``aesthetic``, ``pickscore`` or ``mps``, which start from an export in ``folder``: see ``STARTS``.

    Args:
        part: the scorer's name.
        folder: holds what is trained already; the pools of pictures are kept there.
        device: where it trains.
        groups: groups of pictures in the pool.
        sizes: ``batch``, where it is not the task's own.

    Raises:
        InvalidInput: an unknown part.
        MissingWeights: the model that the part starts from is not trained yet.
    """
    if part == "clip":
        return ClipTask(device, folder / "pools", groups, **sizes)
    tasks = {"aesthetic": AestheticTask, "pickscore": PickScoreTask, "mps": MpsTask}
    if part not in tasks:
        raise InvalidInput("part", f"{part!r} is not a scorer.", hint=f"The scorers are clip, {', '.join(tasks)}.")
    start = folder / STARTS[part]
    if not (start / "config.json").is_file():
        raise MissingWeights(f"{start.name} is not trained yet.", hint=f"Train it first: sfumato vista train --part {start.name}")
    clip = eager(CLIPModel.from_pretrained(start, dtype=torch.float32))
    return tasks[part](clip, device, folder / "pools", groups, **sizes)


class AestheticTask(PairTask):
    """The aesthetic head on frozen CLIP features, fitted to the overall finish on 1 to 10."""

    name = "aesthetic"
    seed = 5202
    average = 0.995

    def __init__(self, clip: CLIPModel, device: str = "cpu", cache: Path | None = None, groups: int = GROUPS, batch: int = 512) -> None:
        super().__init__(device, cache, groups)
        self.clip, self.batch = clip.eval().requires_grad_(False), batch
        nn.Module.to(self.clip, device)
        torch.manual_seed(self.seed)
        self.model = AestheticPredictor(width_of(clip)).to(device)
        with torch.no_grad():
            self.features = torch.cat([self._look(self.pool, noise) for noise in (None, torch.Generator().manual_seed(self.seed))])
            self.unseen = self._look(self.held_out, None)
        self.target = self._target(self.pool).repeat(2)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW; a stack of linear layers needs no more."""
        return [torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=1e-4)]

    def backward(self, step: Step) -> float:
        """One batch of cached features."""
        rows = torch.randint(len(self.features), (self.batch,), generator=step.torch)
        torch.manual_seed(self.seed * 1_000_003 + step.number)
        self.model.train()
        loss = F.mse_loss(self.model(self.features[rows]), self.target[rows])
        loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Rank correlation with the true finish on held-out pictures, and the mean error."""
        score, truth = average(self.unseen), self._target(self.held_out)
        return {"spearman": rank_correlation(score, truth), "error": (score - truth).abs().mean().item()}

    def export(self, average: nn.Module, folder: Path) -> None:
        """Weights in half precision and ``config.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model": "laion-aesthetic", "version": "1", "width": width_of(self.clip)}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file({k: v.half() for k, v in average.state_dict().items()}, folder / "model.safetensors")

    def _look(self, pool: PairPool, source: torch.Generator | None) -> Tensor:
        features = []
        for part in pool.pictures.flatten(0, 1).split(256):
            pictures = self.seen(part, source) if source else (part.float() / 127.5 - 1).to(self.device)
            features.append(unit(self.clip.get_image_features(pixel_values=pictures).pooler_output))  # pyright: ignore
        return torch.cat(features)

    def _target(self, pool: PairPool) -> Tensor:
        overall = pool.finish[..., 2].flatten().to(self.device)
        return AESTHETIC_LOW + (AESTHETIC_HIGH - AESTHETIC_LOW) * overall


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rho; ties share their mean rank."""
    return torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1].item()


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]
