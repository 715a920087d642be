"""The scorers that are a CLIP model and a little arithmetic: CLIP agreement, HPS v2, PickScore, and LAION's aesthetics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel

from services.scoring.metric import Metric, ScoringBatch
from sfumato.scoring.networks import AESTHETIC_HIGH, AESTHETIC_LOW, AestheticPredictor, unit


class ClipEncoder:
    """A CLIP model with its tokenizer and image processor."""

    def __init__(self, model: CLIPModel, tokenizer: Any, processor: Any) -> None:
        self.model, self.tokenizer, self.processor = model.eval().requires_grad_(False), tokenizer, processor

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def pixels(self, batch: ScoringBatch) -> Tensor:
        """``[batch, 3, side, side]`` as the model wants them."""
        arrays = [np.array(image) for image in batch.images]
        return self.processor(images=arrays, return_tensors="pt", input_data_format="channels_last")["pixel_values"].to(self.device)

    def tokens(self, texts: Sequence[str], padding: bool | str = True) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask``; what is beyond the model's context is cut off, as CLIP does."""
        context = self.model.config.text_config.max_position_embeddings  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        out = self.tokenizer(list(texts), padding=padding, truncation=True, max_length=context, return_tensors="pt")
        return out["input_ids"].to(self.device), out["attention_mask"].to(self.device)

    def images(self, batch: ScoringBatch) -> Tensor:
        """L2-normalised image features ``[batch, width]``."""

        def see() -> Tensor:
            return unit(self.model.get_image_features(pixel_values=self.pixels(batch)).pooler_output)  # pyright: ignore

        return batch.once((self, "images"), see)

    def texts(self, batch: ScoringBatch) -> Tensor:
        """L2-normalised features of the prompts ``[batch, width]``."""

        def read() -> Tensor:
            ids, mask = self.tokens(batch.prompts)
            return unit(self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)  # pyright: ignore

        return batch.once((self, "texts"), read)


class CosineScorer:
    """``scale`` x the cosine of picture and prompt.

    ``clip``, as the ArtAug paper reports it (section 4), and ``hpsv2`` (Wu et al. 2023) are cosine x 100. ``pickscore``
    (Kirstain et al. 2023) is a logit: the scale is the one its CLIP was trained with, and differences are log odds.
    """

    def __init__(self, name: str, encoder: ClipEncoder, scale: float, version: str) -> None:
        self.encoder, self.scale = encoder, scale
        self.metric = Metric(name, -scale, scale, True, version)

    def score(self, batch: ScoringBatch) -> list[float]:
        """See `Scorer.score`."""
        return (self.scale * (self.encoder.images(batch) * self.encoder.texts(batch)).sum(-1)).tolist()


class AestheticScorer:
    """The LAION aesthetic predictor, 1 to 10; the prompt does not matter."""

    def __init__(self, name: str, encoder: ClipEncoder, head: AestheticPredictor, version: str) -> None:
        self.encoder, self.head = encoder, head.eval().requires_grad_(False).to(encoder.device)
        self.metric = Metric(name, AESTHETIC_LOW, AESTHETIC_HIGH, True, version)

    def score(self, batch: ScoringBatch) -> list[float]:
        """See `Scorer.score`."""
        return self.head(self.encoder.images(batch)).tolist()
