"""MPS (Zhang et al. 2024): a CLIP that looks at the picture with the prompt's words, under a condition.

`PublishedPreference` is the network as its authors published it (Kwai-Kolors/MPS), with the names of its state dict;
Vista's own, smaller and with a soft mask, is `sfumato.scoring.networks.MultiPreference`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from services.scoring.clip import ClipEncoder
from services.scoring.metric import Metric, ScoringBatch
from sfumato.scoring.networks import MultiPreference, unit

HEAD_WIDTH = 64
GROWTH = 4
"""Width of the feed-forward parts over that of the tokens."""


class MpsScorer:
    """MPS under its overall condition; differences are log odds."""

    def __init__(self, name: str, encoder: ClipEncoder, model: MultiPreference | PublishedPreference, condition: str, version: str) -> None:
        self.encoder, self.condition = encoder, condition
        self.model: nn.Module = model.eval().requires_grad_(False).to(encoder.device)
        # The published network reads the padding after a sentence as words of it: it must be as long as in its training.
        self.padding = "max_length" if isinstance(model, PublishedPreference) else True
        scale = encoder.model.logit_scale.exp().item()
        self.metric = Metric(name, -scale, scale, True, version)

    def score(self, batch: ScoringBatch) -> list[float]:
        """See `Scorer.score`."""
        text, condition = (self.encoder.tokens(texts, self.padding) for texts in (batch.prompts, [self.condition]))
        return self.model(self.encoder.pixels(batch)[None], text, condition)[0].tolist()


class PublishedPreference(nn.Module):
    """A CLIP model whose image tokens look at those words of the prompt that the condition is about.

    Args:
        clip: its projected token features are what is compared.
        cross_model: over the projected width.
        threshold: a word counts when its likeness to the condition is more than this share of the likest word's.
            The authors train with 0.01 and score with 0.3.
    """

    def __init__(self, clip: CLIPModel, cross_model: CrossModel, threshold: float) -> None:
        super().__init__()
        self.clip, self.cross_model, self.threshold = clip, cross_model, threshold

    def forward(self, pixels: Tensor, text: tuple[Tensor, Tensor], condition: tuple[Tensor, Tensor]) -> Tensor:
        """Scores ``[1, batch]`` of ``pixels [1, batch, 3, size, size]``.

        ``text`` and ``condition`` are ``(input_ids, attention_mask)`` of ``batch`` rows and of one; the masks are not used.
        """
        # Unlike CLIP's own image features, these are projected without the last layer norm.
        image = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels[0]).last_hidden_state)
        read = self.clip.text_model(input_ids=text[0])
        words, whole = self.clip.text_projection(read.last_hidden_state), self.clip.text_projection(read.pooler_output)
        terms = self.clip.text_projection(self.clip.text_model(input_ids=condition[0]).last_hidden_state)
        alike = (words @ terms.mT).amax(-1)
        seen = self.cross_model(image, words, alike / alike.amax(-1, keepdim=True) > self.threshold)[:, 0]
        return self.clip.logit_scale.exp() * (unit(seen) * unit(whole)).sum(-1)[None]


class CrossModel(nn.Module):
    """Layers of cross-attention to the words and of self-attention, each with a feed-forward part beside it.

    All attention has many heads of queries and a single one of keys and values (as PaLM).
    """

    def __init__(self, width: int = 1024, layers: int = 4, heads: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([_Residual(_CrossAttention(width, heads)), _Residual(_SelfAttention(width, heads))]) for _ in range(layers)
        )

    def forward(self, image: Tensor, words: Tensor, counts: Tensor) -> Tensor:
        """``image [batch, tokens, width]`` after looking at ``words [batch, words, width]`` where ``counts [batch, words]``."""
        for layer in self.layers:
            cross, own = layer  # pyright: ignore[reportGeneralTypeIssues] (a ModuleList of two)
            image = own(cross(image, words, counts))
        return image


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.fn(x, *others) + x


class _SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class _CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_WIDTH
        self.norm = nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, inner, bias=False), nn.Linear(width, 2 * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        grown = GROWTH * width
        self.ff = nn.Sequential(nn.Linear(width, 2 * grown, bias=False), _SwiGLU(), nn.Linear(grown, width, bias=False))

    def forward(self, x: Tensor, words: Tensor, counts: Tensor) -> Tensor:
        x = self.norm(x)
        key, value = self.to_kv(words).chunk(2, dim=-1)
        return self.to_out(_attend(_heads(self.to_q(x)), key, value, counts[:, None, None])) + self.ff(x)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.parts = (heads * HEAD_WIDTH, HEAD_WIDTH, HEAD_WIDTH, 2 * GROWTH * width)
        self.norm, self.rotary_emb = nn.LayerNorm(width), _Rotary()
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(self.parts[0], width, bias=False)
        self.ff_out = nn.Sequential(_SwiGLU(), nn.Linear(GROWTH * width, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, grown = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        return self.attn_out(_attend(self.rotary_emb(_heads(query)), self.rotary_emb(key), value)) + self.ff_out(grown)


class _Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021), halves rotated into each other."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10_000.0 ** -(torch.arange(0, HEAD_WIDTH, 2).float() / HEAD_WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., tokens, HEAD_WIDTH]``"""
        angles = torch.outer(torch.arange(x.shape[-2], device=x.device), self.inv_freq).repeat(1, 2)
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def _heads(x: Tensor) -> Tensor:
    """``[batch, tokens, heads x width]`` to ``[batch, heads, tokens, width]``."""
    return x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Every head of ``query`` attends to the one head of ``key`` and ``value [batch, tokens, width]``; heads joined again."""
    heads = query.shape[1]
    key, value = (t[:, None].expand(-1, heads, -1, -1) for t in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
