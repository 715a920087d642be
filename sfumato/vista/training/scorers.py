"""Training of the scorers: CLIP on pictures and captions, the aesthetic head on its features, two preference models on pairs.

What they are taught to like: a picture that shows what the prompt names, and, among such, the better finish. A plain prompt
says nothing about the finish (as with real CLIP models), so that a beautiful picture of it is no worse a match.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from sfumato.errors import InvalidInput, MissingWeights
from sfumato.vista.generator import build_tokenizer
from sfumato.vista.phrases import vocabulary
from sfumato.vista.scorers import AESTHETIC_HIGH, AESTHETIC_LOW, AestheticPredictor, MultiPreference, unit
from sfumato.vista.training.augment import degrade
from sfumato.vista.training.judge import optimizers
from sfumato.vista.training.loop import Step, Task
from sfumato.vista.training.pairs import IN_GROUP, PairPool, contents, finish_mask, lacks, pair_pool, spoken
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


def build(part: str, folder: Path, device: str = "cpu", groups: int = GROUPS) -> Task:
    """The task of ``clip``, ``aesthetic``, ``pickscore`` or ``mps``; the last three start from ``folder / "clip"``.

    Raises:
        InvalidInput: an unknown part.
        MissingWeights: CLIP is not trained yet.
    """
    if part == "clip":
        return ClipTask(device, folder / "pools", groups)
    tasks = {"aesthetic": AestheticTask, "pickscore": PickScoreTask, "mps": MpsTask}
    if part not in tasks:
        raise InvalidInput("part", f"{part!r} is not a scorer.", hint=f"The scorers are clip, {', '.join(tasks)}.")
    if not (folder / "clip" / "config.json").is_file():
        raise MissingWeights("CLIP is not trained yet.", hint="Train it first: sfumato vista train --part clip")
    clip = _eager(CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32))
    return tasks[part](clip, device, folder / "pools", groups)


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
    vision = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64, "patch_size": 8}
    return _eager(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)))


def _eager(clip: CLIPModel) -> CLIPModel:
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


class _PairTask:
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


class ClipTask(_PairTask):
    """CLIP: contrastive over groups of hard negatives, with a head on the image features that must tell the finish."""

    name = "clip"
    seed = 5101

    def __init__(self, device: str = "cpu", cache: Path | None = None, groups: int = GROUPS, batch: int = 32) -> None:
        super().__init__(device, cache, groups)
        self.batch = min(batch, groups)
        torch.manual_seed(self.seed)
        clip = build_clip(self.tokenizer)
        self.model = nn.ModuleDict({"clip": clip, "finish": nn.Linear(clip.config.projection_dim, 3 + 2 * len(KINDS))}).to(device)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """See `judge.optimizers`."""
        return optimizers(self.model, 0.02, 2e-3)

    def backward(self, step: Step) -> float:
        """One batch of groups."""
        batch = self.draw(self.pool, step.python, step.torch)
        with torch.autocast(self.device, torch.bfloat16):
            image, text = self._features(self.model, batch)
        scale = self.model["clip"].logit_scale.clamp(max=4.6).exp()
        loss = contrastive(scale * text @ image.mT, batch) + finish_loss(self.model["finish"](image * image.shape[1] ** 0.5), batch)
        loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Retrieval among 64 pictures of different groups, hits among the hard negatives, correlation with the finish."""
        assert isinstance(average, nn.ModuleDict)
        batch = self.draw(self.held_out, random.Random(0), None)
        image, text = self._features(average, batch)
        alike = text @ image.mT
        rows = torch.arange(0, min(len(alike), 64 * IN_GROUP), IN_GROUP)
        far = alike[rows][:, rows]
        hard = alike.masked_fill(batch.neutral, -1)[batch.used].argmax(1) == torch.arange(len(alike), device=alike.device)[batch.used]
        overall = average["finish"](image * image.shape[1] ** 0.5)[:, 2]
        return {
            "retrieval": (far.argmax(1) == torch.arange(len(rows), device=far.device)).float().mean().item(),
            "retrieval_hard": hard.float().mean().item(),
            "finish_r": torch.corrcoef(torch.stack([overall, batch.finish[:, 2]]))[0, 1].item(),
        }

    def export(self, average: nn.Module, folder: Path) -> None:
        """See `save_clip`."""
        assert isinstance(average, nn.ModuleDict)
        save_clip(average["clip"], folder)  # pyright: ignore[reportArgumentType]

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

    def _features(self, model: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor]:
        clip = model["clip"]
        image = clip.get_image_features(pixel_values=batch.pictures).pooler_output  # pyright: ignore
        text = clip.get_text_features(input_ids=batch.ids, attention_mask=batch.mask).pooler_output  # pyright: ignore
        return unit(image), unit(text)


class AestheticTask(_PairTask):
    """The aesthetic head on frozen CLIP features, fitted to the overall finish on 1 to 10."""

    name = "aesthetic"
    seed = 5202
    average = 0.995

    def __init__(self, clip: CLIPModel, device: str = "cpu", cache: Path | None = None, groups: int = GROUPS, batch: int = 512) -> None:
        super().__init__(device, cache, groups)
        self.clip, self.batch = clip.eval().requires_grad_(False).to(device), batch
        torch.manual_seed(self.seed)
        self.model = AestheticPredictor(clip.config.projection_dim).to(device)
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
        config = {"model": "laion-aesthetic", "version": "1", "width": self.clip.config.projection_dim}
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


class Pairs(NamedTuple):
    """Pictures ``[2, batch, 3, 64, 64]``, prompts, and which of the two is preferred (0 or 1, ``[batch]``)."""

    pictures: Tensor
    prompts: list[str]
    preferred: Tensor


class PickScoreTask(_PairTask):
    """PickScore (Kirstain et al. 2023): CLIP fine-tuned so that of two pictures the preferred one has the larger
    ``exp(logit_scale) * cos(text, image)``.
    """

    name = "pickscore"
    seed = 5303

    def __init__(self, clip: CLIPModel, device: str = "cpu", cache: Path | None = None, groups: int = GROUPS, batch: int = 48) -> None:
        super().__init__(device, cache, groups)
        self.batch = batch
        torch.manual_seed(self.seed)
        self.model = clip.to(device)
        self.model.train().requires_grad_(True)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """See `judge.optimizers`; gentler, as this is fine-tuning."""
        return optimizers(self.model, 0.008, 6e-4)

    def backward(self, step: Step) -> float:
        """One batch of pairs."""
        pairs = draw_pairs(self.pool, self.batch, step.python, "overall")
        pictures = self.seen(pairs.pictures.flatten(0, 1), step.torch)
        with torch.autocast(self.device, torch.bfloat16):
            scores = self._scores(self.model, pictures, pairs.prompts)
        loss = F.cross_entropy(scores, pairs.preferred.to(self.device))
        loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Share of held-out pairs whose preferred picture has the larger score."""
        pairs = draw_pairs(self.held_out, 512, random.Random(0), "overall")
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


class MpsTask(_PairTask):
    """MPS: the same pairs, judged under a condition (overall, aesthetics alone, agreement alone)."""

    name = "mps"
    seed = 5404

    def __init__(self, clip: CLIPModel, device: str = "cpu", cache: Path | None = None, groups: int = GROUPS, batch: int = 48) -> None:
        super().__init__(device, cache, groups)
        self.batch = batch
        torch.manual_seed(self.seed)
        self.model = MultiPreference(clip).to(device)
        self.model.train().requires_grad_(True)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """See `judge.optimizers`; gentler, as most of it is fine-tuning."""
        return optimizers(self.model, 0.01, 8e-4)

    def backward(self, step: Step) -> float:
        """One batch of pairs, a third of it under each condition (half of them overall)."""
        loss = 0.0
        for condition, share in (("overall", 0.5), ("aesthetics", 0.25), ("agreement", 0.25)):
            pairs = draw_pairs(self.pool, int(self.batch * share), step.python, condition)
            pictures = self.seen(pairs.pictures.flatten(0, 1), step.torch)
            with torch.autocast(self.device, torch.bfloat16):
                scores = self._scores(self.model, pictures, pairs.prompts, condition)
            part = share * F.cross_entropy(scores, pairs.preferred.to(self.device))
            part.backward()
            loss += float(part.detach())
        return loss

    @torch.no_grad()
    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Share of held-out pairs put in the right order, under each condition."""
        figures = {}
        for condition in CONDITIONS:
            pairs = draw_pairs(self.held_out, 384, random.Random(0), condition)
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


def draw_pairs(pool: PairPool, count: int, rng: random.Random, condition: str) -> Pairs:
    """Pairs with a clear preference: fewer things lacking wins, then the better finish; either alone under its condition."""
    chosen: list[tuple[tuple[int, int], tuple[int, int]]] = []
    prompts, preferred = [], []
    while len(chosen) < count:
        row = rng.randrange(len(pool))
        a, b = rng.sample(range(IN_GROUP), 2)
        first, second = (row, a), (rng.randrange(len(pool)) if rng.random() < 0.08 else row, b)
        wanted = pool.scenes[row][a if rng.random() < 0.5 else b]
        scenes = [pool.scenes[i][k] for i, k in (first, second)]
        missing = [lacks(scene, wanted) for scene in scenes]
        finish = [float(pool.finish[i, k, 2]) for i, k in (first, second)]
        by_content = 0 if condition == "aesthetics" else missing[1] - missing[0]
        by_finish = 0.0 if condition == "agreement" else finish[0] - finish[1]
        if not by_content and abs(by_finish) < 0.08:
            continue
        chosen.append((first, second))
        preferred.append(0 if (by_content or by_finish) > 0 else 1)
        prompts.append(spoken(wanted, rng, plainly=rng.random() < 0.65)[0])
    groups, members = torch.tensor(chosen).permute(2, 1, 0)
    return Pairs(pool.pictures[groups, members], prompts, torch.tensor(preferred))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rho; ties share their mean rank."""
    return torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1].item()


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]
