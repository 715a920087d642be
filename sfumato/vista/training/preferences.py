"""Training of the two preference models on pairs of the world's pictures.

What they are taught to like: the better finish, and among pictures of one finish the one that shows what the prompt names.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel

from sfumato.scoring.networks import MultiPreference, unit
from sfumato.vista.training.clip import CONDITIONS, GROUPS, PairTask, save_clip
from sfumato.vista.training.judge import optimizers
from sfumato.vista.training.loop import Step
from sfumato.vista.training.pairs import IN_GROUP, PairPool, lacks, spoken
from sfumato.vista.training.precision import autocast

CLEAR = 0.08
"""Finishes that differ by less are one."""


class Pairs(NamedTuple):
    """Pictures ``[2, batch, 3, 64, 64]``, prompts, and which of the two is preferred (0 or 1, ``[batch]``)."""

    pictures: Tensor
    prompts: list[str]
    preferred: Tensor


class PreferenceTask(PairTask):
    """What the two have in common: a model that starts from a CLIP, all of which learns."""

    def __init__(self, clip: CLIPModel, device: str = "cpu", cache: Path | None = None, groups: int = GROUPS, batch: int = 48) -> None:
        super().__init__(device, cache, groups)
        self.batch = batch
        torch.manual_seed(self.seed)
        self.model = self.begun(clip)
        nn.Module.to(self.model, device)
        self.model.train().requires_grad_(True)

    def begun(self, clip: CLIPModel) -> nn.Module:
        """The model as its training finds it."""
        return clip


class PickScoreTask(PreferenceTask):
    """PickScore (Kirstain et al. 2023): CLIP fine-tuned so that of two pictures the preferred one has the larger
    ``exp(logit_scale) * cos(text, image)``.
    """

    name = "pickscore"
    seed = 5303

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """See `judge.optimizers`; gentler, as this is fine-tuning."""
        return optimizers(self.model, 0.008, 6e-4)

    def backward(self, step: Step) -> float:
        """One batch of pairs."""
        pairs = draw_pairs(self.pool, self.batch, step.python, "overall")
        pictures = self.seen(pairs.pictures.flatten(0, 1), step.torch)
        with autocast(self.device):
            scores = self._scores(self.model, pictures, pairs.prompts)
        loss = F.cross_entropy(scores, pairs.preferred.to(self.device))
        loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Share of held-out pairs whose preferred picture has the larger score."""
        pairs = draw_pairs(self.held_out, min(512, IN_GROUP * len(self.held_out)), random.Random(0), "overall")
        scores = self._scores(average, (pairs.pictures.flatten(0, 1).float() / 127.5 - 1).to(self.device), pairs.prompts)
        return {"accuracy": (scores.argmax(1).cpu() == pairs.preferred).float().mean().item()}

    def export(self, average: nn.Module, folder: Path) -> None:
        """See `save_clip`."""
        assert isinstance(average, CLIPModel)
        save_clip(average, folder)

    def _scores(self, model: nn.Module, pictures: Tensor, prompts: list[str]) -> Tensor:
        """``[batch, 2]``."""
        assert isinstance(model, CLIPModel)
        ids, mask = self.tokens(prompts)
        image = unit(model.get_image_features(pixel_values=pictures).pooler_output)  # pyright: ignore
        text = unit(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)  # pyright: ignore
        return model.logit_scale.exp() * (image.unflatten(0, (2, -1)) * text).sum(-1).mT


class MpsTask(PreferenceTask):
    """MPS: the same pairs, judged under a condition (overall, aesthetics alone, agreement alone)."""

    name = "mps"
    seed = 5404

    def begun(self, clip: CLIPModel) -> MultiPreference:
        """CLIP, and attention that has learnt nothing."""
        return MultiPreference(clip)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """See `judge.optimizers`; gentler, as most of it is fine-tuning."""
        return optimizers(self.model, 0.01, 8e-4)

    def backward(self, step: Step) -> float:
        """One batch of pairs, a third of it under each condition (half of them overall)."""
        loss = 0.0
        for condition, share in (("overall", 0.5), ("aesthetics", 0.25), ("agreement", 0.25)):
            pairs = draw_pairs(self.pool, int(self.batch * share), step.python, condition)
            pictures = self.seen(pairs.pictures.flatten(0, 1), step.torch)
            with autocast(self.device):
                scores = self._scores(self.model, pictures, pairs.prompts, condition)
            part = share * F.cross_entropy(scores, pairs.preferred.to(self.device))
            part.backward()
            loss += float(part.detach())
        return loss

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Share of held-out pairs put in the right order, under each condition."""
        figures, count = {}, min(384, IN_GROUP * len(self.held_out))
        for condition in CONDITIONS:
            pairs = draw_pairs(self.held_out, count, random.Random(0), condition)
            scores = self._scores(average, (pairs.pictures.flatten(0, 1).float() / 127.5 - 1).to(self.device), pairs.prompts, condition)
            figures[condition] = (scores.argmax(1).cpu() == pairs.preferred).float().mean().item()
        return figures

    def export(self, average: nn.Module, folder: Path) -> None:
        """CLIP's folder, ``attention.safetensors`` and the conditions in ``mps.json``."""
        assert isinstance(average, MultiPreference)
        save_clip(average.clip, folder)
        save_file({k: v.half().contiguous() for k, v in average.attention.state_dict().items()}, folder / "attention.safetensors")
        config = {"model": "mps", "version": "1", "heads": average.attention.heads, "conditions": CONDITIONS}
        (folder / "mps.json").write_text(json.dumps(config, indent=1) + "\n")

    def _scores(self, model: nn.Module, pictures: Tensor, prompts: list[str], condition: str) -> Tensor:
        """``[batch, 2]``."""
        return model(pictures.unflatten(0, (2, -1)), self.tokens(prompts), self.tokens([CONDITIONS[condition]] * len(prompts))).mT


def draw_pairs(pool: PairPool, count: int, rng: random.Random, condition: str) -> Pairs:
    """Pairs with a clear preference: the better finish wins, then fewer things lacking; either alone under its condition.

    About a third of the pairs under ``overall`` share their finish: a fault is easily missed beside beauty.
    """
    chosen: list[tuple[tuple[int, int], tuple[int, int]]] = []
    prompts, preferred = [], []
    while len(chosen) < count:
        row, faulty = rng.randrange(len(pool)), rng.random() < 0.5
        a, b = rng.sample((0, 2), 2) if faulty else rng.sample(range(IN_GROUP), 2)
        first, second = (row, a), (rng.randrange(len(pool)) if not faulty and rng.random() < 0.16 else row, b)
        wanted = pool.scenes[row][0 if faulty else a if rng.random() < 0.5 else b]
        scenes = [pool.scenes[i][k] for i, k in (first, second)]
        missing = [lacks(scene, wanted) for scene in scenes]
        finish = [float(pool.finish[i, k, 2]) for i, k in (first, second)]
        by_content = 0 if condition == "aesthetics" else missing[1] - missing[0]
        by_finish = 0.0 if condition == "agreement" else finish[0] - finish[1]
        clear = abs(by_finish) >= CLEAR
        better = by_finish if clear else by_content
        if not better or (faulty and clear and condition == "overall"):
            continue
        chosen.append((first, second))
        preferred.append(0 if better > 0 else 1)
        prompts.append(spoken(wanted, rng, plainly=rng.random() < 0.65)[0])
    groups, members = torch.tensor(chosen).permute(2, 1, 0)
    return Pairs(pool.pictures[groups, members], prompts, torch.tensor(preferred))
