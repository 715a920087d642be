"""The networks of the scorers that transformers does not have: the LAION aesthetic head and the MPS cross-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

AESTHETIC_LOW, AESTHETIC_HIGH = 1.0, 10.0


class AestheticPredictor(nn.Module):
    """The LAION aesthetic architecture (christophschuhmann/improved-aesthetic-predictor): a stack of linear layers over
    L2-normalised CLIP image features; its published form has no activations in between. Scores lie on 1 to 10.
    """

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """L2-normalised features ``[batch, width]`` to scores ``[batch]``."""
        return self.layers(features)[:, 0]


class ConditionedAttention(nn.Module):
    """The head of MPS (Zhang et al. 2024, "Learning Multi-dimensional Human Preference for Text-to-Image Generation"):
    image tokens attend to the prompt's words, words that a condition is not about are damped, and the class token that
    comes out is compared with the prompt. The mask is soft here (a learnt threshold and slope) instead of a hard cut.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm_image, self.norm_text, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for last in (self.out, self.narrow):  # starts as its CLIP
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.threshold, self.slope = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(3.0))

    def forward(self, image: Tensor, text: Tensor, text_mask: Tensor, condition: Tensor, condition_mask: Tensor) -> Tensor:
        """Class tokens ``[batch, width]`` of ``image [batch, tokens, width]`` after looking at ``text [batch, words, width]``.

        ``condition [batch, terms, width]``; the masks are 1 where there is a word.
        """
        alike = F.normalize(text, dim=-1) @ F.normalize(condition, dim=-1).mT
        alike = alike.masked_fill(condition_mask[:, None] == 0, -1.0).amax(-1)
        bias = F.logsigmoid(self.slope * (alike - self.threshold)).masked_fill(text_mask == 0, -1e4)
        query = self._split(self.query(self.norm_image(image)))
        words = self.norm_text(text)
        attended = F.scaled_dot_product_attention(
            query, self._split(self.key(words)), self._split(self.value(words)), attn_mask=bias[:, None, None].to(query.dtype)
        )
        tokens = image[:, 0] + self.out(attended.transpose(1, 2).flatten(2))[:, 0]
        return tokens + self.narrow(F.gelu(self.wide(self.norm_out(tokens))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MultiPreference(nn.Module):
    """MPS: a CLIP model and `ConditionedAttention` over its projected tokens."""

    def __init__(self, clip: CLIPModel, attention: ConditionedAttention | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.attention = attention or ConditionedAttention(width_of(clip))

    def forward(self, pixels: Tensor, text: tuple[Tensor, Tensor], condition: tuple[Tensor, Tensor]) -> Tensor:
        """Scores ``[pictures, batch]`` of ``pixels [pictures, batch, 3, size, size]``; several pictures share a prompt.

        ``text`` and ``condition`` are ``(input_ids, attention_mask)`` of ``batch`` rows.
        """
        count = len(pixels)
        seen = self.clip.vision_model(pixel_values=pixels.flatten(0, 1)).last_hidden_state
        image = self.clip.visual_projection(self.clip.vision_model.post_layernorm(seen))
        words, whole = self._read(*text)
        terms, _ = self._read(*condition)
        out = self.attention(
            image,
            *(t.repeat(count, *[1] * (t.ndim - 1)) for t in (words, text[1], terms, condition[1])),
        )
        cosine = F.cosine_similarity(out.float().unflatten(0, (count, -1)), whole.float()[None], dim=-1)
        return self.clip.logit_scale.exp() * cosine

    def _read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Projected word tokens ``[batch, words, width]`` and the projected whole ``[batch, width]``."""
        out = self.clip.text_model(input_ids=ids, attention_mask=mask)
        return self.clip.text_projection(out.last_hidden_state), self.clip.text_projection(out.pooler_output)


def unit(features: Tensor) -> Tensor:
    """Features divided by their L2 norm, in single precision."""
    return F.normalize(features.float(), dim=-1)


def width_of(clip: CLIPModel) -> int:
    """The width of a CLIP model's projected features."""
    return clip.visual_projection.out_features
