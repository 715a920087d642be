"""Training of CLIP on the world's pictures and captions, and what the other scorers share with it.

A plain prompt says nothing about the finish (as with real CLIP models), so that a beautiful picture of it is no worse a match.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from sfumato.scoring.networks import unit, width_of
from sfumato.vista.generator import build_tokenizer
from sfumato.vista.phrases import vocabulary
from sfumato.vista.training.augment import degrade
from sfumato.vista.training.judge import optimizers
from sfumato.vista.training.loop import Step
from sfumato.vista.training.pairs import IN_GROUP, PairPool, contents, finish_mask, pair_pool, spoken
from sfumato.vista.training.precision import autocast
from sfumato.vista.world import KINDS

GROUPS = 6_000
HELD_OUT = 192
WORDS = 40
PLAINLY = 0.45
"""Chance that a caption names everything plainly, whatever the finish."""
CONDITIONS = {
    "overall": "light colour finish shape things number place time",
    "aesthetics": "light colour finish shape",
    "agreement": "things number place time",
}
"""What MPS can be asked to look at, as words."""


class Batch(NamedTuple):
    """Pictures ``[n, 3, 64, 64]`` in -1..1, tokens of their captions, and which captions count against which pictures."""

    pictures: Tensor
    ids: Tensor
    mask: Tensor
    neutral: Tensor
    """``[texts, pictures]``: the caption is true of the picture too, though it was written for another."""
    used: Tensor
    """``[texts]``: captions that count."""
    finish: Tensor
    presence: Tensor
    beautiful: Tensor


def build_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """An untrained small CLIP: 64 patches of 8 x 8 and a class token; up to 40 words."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": WORDS,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    return eager(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)))


def eager(clip: CLIPModel) -> CLIPModel:
    """Attention by plain matrix products: on a CPU the fused kernel's backward takes half of a step."""
    clip.set_attn_implementation("eager")
    return clip


def tokenizer_of_scorers() -> PreTrainedTokenizerFast:
    """The generator's kind of tokenizer, with the words of the MPS conditions and a longer context."""
    tokenizer = build_tokenizer([*vocabulary(), *sorted({w for words in CONDITIONS.values() for w in words.split()})])
    tokenizer.model_max_length = WORDS
    return tokenizer


def image_processor() -> CLIPImageProcessor:
    """64 x 64, bicubic, to -1..1."""
    side = {"height": 64, "width": 64}
    return CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def save_clip(clip: CLIPModel, folder: Path) -> None:
    """Model in half precision, tokenizer and image processor, for ``from_pretrained``."""
    copy.deepcopy(clip).half().save_pretrained(folder)
    tokenizer_of_scorers().save_pretrained(folder)
    image_processor().save_pretrained(folder)


class PairTask:
    """What the four have in common: pools of groups, and tokens of texts."""

    name: str
    seed: int
    average = 0.998

    def __init__(self, device: str, cache: Path | None, groups: int) -> None:
        self.device = device
        self.tokenizer = tokenizer_of_scorers()
        self.pool = pair_pool("scorers", groups, cache)
        self.held_out = pair_pool("scorers-held-out", min(HELD_OUT, groups), cache)

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask``, padded to the longest."""
        out = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return out["input_ids"].to(self.device), out["attention_mask"].to(self.device)  # pyright: ignore

    def seen(self, pictures: Tensor, source: torch.Generator) -> Tensor:
        """uint8 pictures to -1..1, degraded as a generator would."""
        return degrade(pictures.float() / 127.5 - 1, source, strength=0.6).to(self.device)


class TaughtClip(nn.Module):
    """CLIP and a head that must tell finish and presence from its image features; only CLIP is kept."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.finish = nn.Linear(width_of(clip), 3 + 2 * len(KINDS))

    def forward(self, pictures: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of pictures and of texts, ``[n, width]`` each."""
        image = unit(self.clip.get_image_features(pixel_values=pictures).pooler_output)  # pyright: ignore
        return image, unit(self.clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)  # pyright: ignore

    def tell(self, image: Tensor) -> Tensor:
        """Finish of objects, sky and overall; logits of presence and finish by kind. ``[n, 3 + 2 * kinds]``."""
        return self.finish(image * image.shape[1] ** 0.5)

    def logit_scale(self) -> Tensor:
        """The temperature's inverse, at most 100."""
        return self.clip.logit_scale.clamp(max=4.6).exp()


class ClipTask(PairTask):
    """CLIP: contrastive over groups of hard negatives, with a head on the image features that must tell the finish."""

    name = "clip"
    seed = 5101

    def __init__(self, device: str = "cpu", cache: Path | None = None, groups: int = GROUPS, batch: int = 32) -> None:
        super().__init__(device, cache, groups)
        self.batch = min(batch, groups)
        torch.manual_seed(self.seed)
        self.model = TaughtClip(build_clip(self.tokenizer)).to(device)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """See `judge.optimizers`."""
        return optimizers(self.model, 0.02, 2e-3)

    def backward(self, step: Step) -> float:
        """One batch of groups."""
        batch = self.draw(self.pool, step.python, step.torch)
        with autocast(self.device):
            image, text = self.model(batch.pictures, batch.ids, batch.mask)
        loss = contrastive(self.model.logit_scale() * text @ image.mT, batch) + finish_loss(self.model.tell(image), batch)
        loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Retrieval among 64 pictures of different groups, hits among the hard negatives, correlation with the finish."""
        assert isinstance(average, TaughtClip)
        batch = self.draw(self.held_out, random.Random(0), None)
        image, text = average(batch.pictures, batch.ids, batch.mask)
        alike = text @ image.mT
        rows = torch.arange(0, min(len(alike), 64 * IN_GROUP), IN_GROUP)
        far = alike[rows][:, rows]
        hard = alike.masked_fill(batch.neutral, -1)[batch.used].argmax(1) == torch.arange(len(alike), device=alike.device)[batch.used]
        overall = average.tell(image)[:, 2]
        return {
            "retrieval": (far.argmax(1) == torch.arange(len(rows), device=far.device)).float().mean().item(),
            "retrieval_hard": hard.float().mean().item(),
            "finish_r": torch.corrcoef(torch.stack([overall, batch.finish[:, 2]]))[0, 1].item(),
        }

    def export(self, average: nn.Module, folder: Path) -> None:
        """See `save_clip`."""
        assert isinstance(average, TaughtClip)
        save_clip(average.clip, folder)

    def draw(self, pool: PairPool, rng: random.Random, source: torch.Generator | None) -> Batch:
        """Some groups (all of them without a ``source`` of noise, undegraded), one caption a picture."""
        rows = rng.sample(range(len(pool)), self.batch) if source else list(range(len(pool)))
        scenes = [scene for row in rows for scene in pool.scenes[row]]
        texts, said, used = [], [], []
        for scene in scenes:
            plainly = rng.random() < PLAINLY
            text, bits = spoken(scene, rng, plainly)
            texts.append(text)
            said.append(bits)
            used.append(plainly or bits != 0)
        codes = {key: code for code, key in enumerate({contents(s): None for s in scenes})}
        code = torch.tensor([codes[contents(s)] for s in scenes])
        fine, calls = torch.tensor([finish_mask(s) for s in scenes]), torch.tensor(said)
        neutral = (code[:, None] == code) & ((calls[:, None] & ~fine) == 0)
        neutral.fill_diagonal_(False)
        pictures = pool.pictures[rows].flatten(0, 1)
        seen = self.seen(pictures, source) if source else (pictures.float() / 127.5 - 1).to(self.device)
        marks = [[float(kind in {e.kind for e in s.objects}) for kind in KINDS] for s in scenes]
        flags = [[float(any(e.kind == kind and e.beautiful for e in s.objects)) for kind in KINDS] for s in scenes]
        truth = (neutral, torch.tensor(used), pool.finish[rows].flatten(0, 1), torch.tensor(marks), torch.tensor(flags))
        return Batch(seen, *self.tokens(texts), *(t.to(self.device) for t in truth))


def contrastive(logits: Tensor, batch: Batch) -> Tensor:
    """CLIP's symmetric cross-entropy of ``[texts, pictures]``, leaving out what is true of several, and unused captions."""
    own = torch.arange(len(logits), device=logits.device)
    logits = logits.masked_fill(batch.neutral, -1e4)
    by_text = F.cross_entropy(logits[batch.used], own[batch.used])
    by_picture = F.cross_entropy(logits[batch.used].mT[batch.used], torch.arange(int(batch.used.sum()), device=logits.device))
    return (by_text + by_picture) / 2


def finish_loss(told: Tensor, batch: Batch) -> Tensor:
    """What the image features tell: finish of objects, sky and overall; presence and finish of each kind."""
    overall = F.mse_loss(told[:, :3], batch.finish)
    kinds, finishes = told[:, 3:].split(len(KINDS), 1)
    there = F.binary_cross_entropy_with_logits(kinds, batch.presence)
    fine = F.binary_cross_entropy_with_logits(finishes, batch.beautiful, weight=batch.presence, reduction="sum") / batch.presence.sum()
    return 4 * overall + there + fine
