"""The scorers: CLIP agreement, LAION aesthetics, PickScore and MPS, each a CLIP model and a little arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from sfumato.errors import BrokenWeights
from sfumato.types import Image
from sfumato.vista.scorers import AESTHETIC_HIGH, AESTHETIC_LOW, AestheticPredictor, ConditionedAttention, MultiPreference, unit, width_of

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Metric:
    """What a scorer's numbers mean. ``version`` changes with the weights."""

    name: str
    low: float
    high: float
    higher_is_better: bool
    version: str


class Scorer(Protocol):
    """One metric."""

    metric: Metric

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """One number a picture; ``prompts`` has one prompt a picture."""
        ...


class ClipEncoder:
    """A CLIP model with its tokenizer and image processor, all by ``from_pretrained``."""

    def __init__(self, model: CLIPModel, tokenizer: Any, processor: Any) -> None:
        self.model, self.tokenizer, self.processor = model.eval().requires_grad_(False), tokenizer, processor

    @classmethod
    def load(cls, folder: Path) -> ClipEncoder:
        """The model in a folder, in single precision.

        Raises:
            BrokenWeights: a file is absent or cannot be read.
        """
        model = _read(folder, lambda: CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True))
        tokenizer = _read(folder, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True))
        return cls(model, tokenizer, _read(folder, lambda: AutoImageProcessor.from_pretrained(folder, local_files_only=True)))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """``[batch, 3, side, side]`` as the model wants them."""
        arrays = [np.array(image) for image in images]
        return self.processor(images=arrays, return_tensors="pt", input_data_format="channels_last")["pixel_values"].to(self.device)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask``; what is beyond the model's context is cut off, as CLIP does."""
        out = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return out["input_ids"].to(self.device), out["attention_mask"].to(self.device)

    def images(self, images: Sequence[Image]) -> Tensor:
        """L2-normalised image features ``[batch, width]``."""
        return unit(self.model.get_image_features(pixel_values=self.pixels(images)).pooler_output)  # pyright: ignore

    def texts(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised text features ``[batch, width]``."""
        ids, mask = self.tokens(texts)
        return unit(self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)  # pyright: ignore

    def cosine(self, images: Sequence[Image], prompts: Sequence[str]) -> Tensor:
        """``[batch]``"""
        return (self.images(images) * self.texts(prompts)).sum(-1)


class ClipScorer:
    """Agreement of picture and prompt: cosine x 100, as the ArtAug paper reports it (section 4)."""

    def __init__(self, encoder: ClipEncoder, version: str) -> None:
        self.encoder = encoder
        self.metric = Metric("clip", -100.0, 100.0, True, version)

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """See `Scorer.score`."""
        return (100 * self.encoder.cosine(images, prompts)).tolist()


class AestheticScorer:
    """The LAION aesthetic predictor, 1 to 10; the prompt does not matter."""

    def __init__(self, encoder: ClipEncoder, head: AestheticPredictor, version: str) -> None:
        self.encoder, self.head = encoder, head.eval().requires_grad_(False).to(encoder.device)
        self.metric = Metric("aesthetic", AESTHETIC_LOW, AESTHETIC_HIGH, True, version)

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """See `Scorer.score`."""
        return self.head(self.encoder.images(images)).tolist()


class PickScorer:
    """PickScore: ``exp(logit_scale) * cosine`` of a CLIP trained on preferences; differences are log odds."""

    def __init__(self, encoder: ClipEncoder, version: str) -> None:
        self.encoder = encoder
        self.scale = encoder.model.logit_scale.exp()
        self.metric = Metric("pickscore", -self.scale.item(), self.scale.item(), True, version)

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """See `Scorer.score`."""
        return (self.scale * self.encoder.cosine(images, prompts)).tolist()


class MpsScorer:
    """MPS under its overall condition; differences are log odds."""

    def __init__(self, encoder: ClipEncoder, attention: ConditionedAttention, condition: str, version: str) -> None:
        self.encoder, self.condition = encoder, condition
        self.model: nn.Module = MultiPreference(encoder.model, attention).eval().requires_grad_(False)
        scale = encoder.model.logit_scale.exp().item()
        self.metric = Metric("mps", -scale, scale, True, version)

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
        """See `Scorer.score`."""
        tokens = (self.encoder.tokens(texts) for texts in (prompts, [self.condition] * len(prompts)))
        return self.model(self.encoder.pixels(images)[None], *tokens)[0].tolist()


def load_pickscore(folder: Path, version: str) -> PickScorer:
    """A PickScore folder (a CLIP model) as a scorer."""
    return PickScorer(ClipEncoder.load(folder), version)


def load_aesthetic(folder: Path, encoder: ClipEncoder, version: str) -> AestheticScorer:
    """The aesthetic head in a folder, on the CLIP it was fitted to."""

    def read() -> AestheticPredictor:
        head = AestheticPredictor(json.loads((folder / "config.json").read_text())["width"])
        head.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        return head

    return AestheticScorer(encoder, _read(folder, read), version)


def load_mps(folder: Path, version: str) -> MpsScorer:
    """An MPS folder: CLIP's files, ``attention.safetensors`` and ``mps.json``."""
    encoder = ClipEncoder.load(folder)

    def read() -> tuple[ConditionedAttention, str]:
        config = json.loads((folder / "mps.json").read_text())
        attention = ConditionedAttention(width_of(encoder.model), config["heads"])
        attention.load_state_dict({k: v.float() for k, v in load_file(folder / "attention.safetensors").items()})
        return attention, config["conditions"]["overall"]

    return MpsScorer(encoder, *_read(folder, read), version)


def _read(folder: Path, read: Callable[[], _Part]) -> _Part:
    try:
        return read()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BrokenWeights(f"the scorer's files in {folder} cannot be read.", hint="Reinstall the package.") from error
