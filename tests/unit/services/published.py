"""Small random networks in the layouts in which the scorers' weights were published, written from their papers and layouts."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

WORDS = ["a", "the", "moon", "house", "tree", "lake", "over", "and", "light", "color", "shape", "by", "night", "day"]
VOCABULARY = ["?", *WORDS, "<|startoftext|>", "<|endoftext|>"]
CONTEXT, SIDE, PATCH, TEXT, VISION, WIDTH = 16, 32, 8, 64, 80, 64


def write_tokenizer(folder: Path) -> None:
    """Words to numbers, with CLIP's marks at both ends; padded with the end mark, as the laion repository's."""
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    ends = [(mark, VOCABULARY.index(mark)) for mark in VOCABULARY[-2:]]
    single = f"{VOCABULARY[-2]} $A {VOCABULARY[-1]}"
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ends)  # pyright: ignore[reportAttributeAccessIssue]
    marks = {"bos_token": VOCABULARY[-2], "eos_token": VOCABULARY[-1], "pad_token": VOCABULARY[-1], "unk_token": "?"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **marks).save_pretrained(folder)


def clip_config() -> CLIPConfig:
    """A CLIP of two layers with one head of ViT-H/14's width each."""
    marks = {"bos_token_id": len(VOCABULARY) - 2, "eos_token_id": len(VOCABULARY) - 1, "pad_token_id": len(VOCABULARY) - 1}
    shared = {"num_hidden_layers": 2, "num_attention_heads": 1, "hidden_act": "gelu"}
    text = {"hidden_size": TEXT, "intermediate_size": 2 * TEXT, "vocab_size": len(VOCABULARY), "max_position_embeddings": CONTEXT}
    sight = {"hidden_size": VISION, "intermediate_size": 2 * VISION, "image_size": SIDE, "patch_size": PATCH}
    return CLIPConfig(text_config=shared | text | marks, vision_config=shared | sight, projection_dim=WIDTH)


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """Random weights, biases and norms too, so that no tensor may be forgotten or exchanged."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def clip_model(seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    model = shaken(CLIPModel(clip_config()), seed)
    assert isinstance(model, CLIPModel)
    return model


# --- open_clip (HPS v2) ---


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 1, batch_first=True)
        parts = [("c_fc", nn.Linear(width, 2 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(2 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, VISION, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(VISION))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, VISION))
        self.ln_pre, self.ln_post, self.transformer = nn.LayerNorm(VISION), nn.LayerNorm(VISION), Tower(VISION)
        self.proj = nn.Parameter(torch.randn(VISION, WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """The layout of HPS v2's checkpoint: open_clip's ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.transformer = Visual(), Tower(TEXT)
        self.token_embedding, self.ln_final = nn.Embedding(len(VOCABULARY), TEXT), nn.LayerNorm(TEXT)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, TEXT))
        self.text_projection = nn.Parameter(torch.randn(TEXT, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def cosine(self, pixels: Tensor, ids: Tensor) -> Tensor:
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]], mask))
        text = x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection
        return F.cosine_similarity(self.visual(pixels), text)


# --- MPS: the modules that its authors pickled, by their published names ---


class LayerNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * self.weight


class SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x[..., half:].sigmoid() * x[..., half:] * x[..., :half]


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return x + self.fn(x, *more)


class RotaryEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.tensor([10_000 ** (-2 * i / dim) for i in range(dim // 2)]))

    def forward(self, x: Tensor) -> Tensor:
        """Each pair (x_i, x_{i + half}) as a complex number, turned by its position's angle."""
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[-2])[:, None] * self.get_buffer("inv_freq")
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Heads one after the other, each over the same keys and values."""
    heads = [((head @ k.mT) / 64**0.5 + bias).softmax(-1) @ v for head in q.split(64, -1)]
    return torch.cat(heads, -1)


class CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm, self.context_norm = LayerNorm(dim), nn.Identity()
        self.to_q = nn.Linear(dim, 64 * heads, bias=False)
        self.to_kv = nn.Linear(dim, 128, bias=False)
        self.to_out = nn.Linear(64 * heads, dim, bias=False)
        self.ff = nn.Sequential(nn.Linear(dim, 8 * dim, bias=False), SwiGLU(), nn.Linear(4 * dim, dim, bias=False))

    def forward(self, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        x = self.norm(x)
        kv = self.to_kv(context)
        return self.to_out(attend(self.to_q(x), kv[..., :64], kv[..., 64:], bias)) + self.ff(x)


class ParallelTransformerBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.rotary_emb = heads, LayerNorm(dim), RotaryEmbedding(64)
        self.fused_attn_ff_proj = nn.Linear(dim, 64 * heads + 128 + 8 * dim, bias=False)
        self.attn_out = nn.Linear(64 * heads, dim, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * dim, dim, bias=False))
        self.register_buffer("pos_emb", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        whole, inner = self.fused_attn_ff_proj(self.norm(x)), 64 * self.heads
        q, k, v, ff = whole[..., :inner], whole[..., inner : inner + 64], whole[..., inner + 64 : inner + 128], whole[..., inner + 128 :]
        q = torch.cat([self.rotary_emb(head) for head in q.split(64, -1)], -1)
        return self.attn_out(attend(q, self.rotary_emb(k), v)) + self.ff_out(ff)


class Cross_model(nn.Module):  # noqa: N801 - its published name
    def __init__(self, dim: int, layer_num: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Residual(CrossAttention(dim, heads)), Residual(ParallelTransformerBlock(dim, heads))]) for _ in range(layer_num)
        )


class XCLIPModel(CLIPModel):
    pass


class MpsModel(nn.Module):
    """What was pickled as ``trainer.models.clip_model.CLIPModel``."""

    __qualname__ = "CLIPModel"

    def __init__(self) -> None:
        super().__init__()
        self.model, self.cross_model = XCLIPModel(clip_config()), Cross_model(WIDTH, 2, 2)

    def score(self, pixels: Tensor, ids: Tensor, condition: Tensor) -> Tensor:
        """One picture after the other, as the authors' evaluation does; ``ids`` padded to the context's length."""
        clip, scores = self.model, []
        for row in range(len(ids)):
            image = clip.visual_projection(clip.vision_model(pixel_values=pixels[row : row + 1]).last_hidden_state)
            read = clip.text_model(input_ids=ids[row : row + 1])
            words, whole = clip.text_projection(read.last_hidden_state), clip.text_projection(read.pooler_output)
            terms = clip.text_projection(clip.text_model(input_ids=condition).last_hidden_state)
            alike = torch.einsum("bid,bjd->bji", words, terms).max(1).values
            bias = torch.where(alike / alike.max() > 0.3, 0.0, float("-inf"))
            for layer in self.cross_model.layers:
                image = layer[1](layer[0](image, words, bias[:, None]))  # pyright: ignore[reportIndexIssue]
            scores.append(clip.logit_scale.exp() * F.cosine_similarity(image[:, 0], whole))
        return torch.cat(scores)


PICKLED = {
    "trainer.models.clip_model": {"CLIPModel": MpsModel, "XCLIPModel": XCLIPModel},
    "trainer.models.cross_modeling": {
        kind.__name__: kind
        for kind in (LayerNorm, SwiGLU, Residual, RotaryEmbedding, CrossAttention, ParallelTransformerBlock, Cross_model)
    },
}
"""Under which names the authors' file holds these classes."""
