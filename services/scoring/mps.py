"""MPS (Zhang et al. 2024): a CLIP that looks at the picture with the prompt's words, under a condition."""

from __future__ import annotations

from torch import nn

from services.scoring.clip import ClipEncoder
from services.scoring.metric import Batch, Metric


class MpsScorer:
    """MPS under its overall condition; differences are log odds."""

    def __init__(self, name: str, encoder: ClipEncoder, model: nn.Module, condition: str, version: str) -> None:
        self.encoder, self.condition = encoder, condition
        self.model = model.eval().requires_grad_(False).to(encoder.device)
        scale = encoder.model.logit_scale.exp().item()
        self.metric = Metric(name, -scale, scale, True, version)

    def score(self, batch: Batch) -> list[float]:
        """See `Scorer.score`."""
        tokens = (self.encoder.tokens(texts) for texts in (batch.prompts, [self.condition] * len(batch.prompts)))
        return self.model(self.encoder.pixels(batch)[None], *tokens)[0].tolist()
