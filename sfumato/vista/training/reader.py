"""The understanding model's forward for training: the same weights and numbers as transformers', without its generality.

Fixed 64x64 pictures in batches, several questions about one picture in one sequence under a block mask, and hidden states of
a middle layer for the auxiliary task. A test holds it against ``Qwen2VLForConditionalGeneration``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from sfumato.vista.understanding import GRID, IMAGE_TOKENS, MERGE, PATCH, REGISTERS

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SPAN = GRID // MERGE
"""How many positions a picture takes in multimodal rotary embedding."""
BEFORE = REGISTERS + 2
"""Tokens before the first picture's: the start of the turn, the registers, the start of vision."""
MERGE_ORDER = torch.arange(GRID * GRID).view(SPAN, MERGE, SPAN, MERGE).permute(0, 2, 1, 3).reshape(-1)
"""Qwen2-VL's order of patches: the four of each merged token together."""

Rotation = tuple[Tensor, Tensor]


class Reader:
    """Runs one ``Qwen2VLForConditionalGeneration`` of Vista's build."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model: Any = model
        text: Any = model.config.text_config
        self.head_size = text.hidden_size // text.num_attention_heads
        self.eps = text.rms_norm_eps
        device = model.device
        convert: Any = tokenizer.convert_tokens_to_ids
        powers = torch.arange(0, self.head_size, 2, device=device).float() / self.head_size
        self.frequencies = 1 / text.rope_parameters["rope_theta"] ** powers
        sections = text.rope_parameters["mrope_section"]
        self.sections = torch.tensor([axis for axis, length in enumerate(sections) for _ in range(length)], device=device)
        cosines, sines = _vision_rotation(model.config.vision_config)
        self.vision_rotation = cosines.to(device), sines.to(device)
        registers = [f"<|register_{i}|>" for i in range(REGISTERS)]
        self.opening: list[int] = convert(["<|im_start|>", *registers])
        self.vision_start, self.vision_end, self.turn_end = convert(["<|vision_start|>", "<|vision_end|>", "<|im_end|>"])

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings, ``[..., width]``."""
        return self.model.get_input_embeddings()(ids)

    def see(self, pictures: Tensor) -> Tensor:
        """Image tokens ``[batch, 16, width]`` of pictures ``[batch, 3, 64, 64]`` in 0..1."""
        visual = self.model.model.visual
        config = self.model.config.vision_config
        weight = visual.patch_embed.proj.weight.sum(2).flatten(1)
        x = F.linear(_patches(pictures), weight)
        batch, count, _ = x.shape
        for block in visual.blocks:
            q, k, v = block.attn.qkv(block.norm1(x)).view(batch, count, 3, config.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = _attend(_rotate(q, self.vision_rotation), _rotate(k, self.vision_rotation), v, None)
            x = x + block.attn.proj(mixed.transpose(1, 2).reshape(batch, count, -1))
            hidden = block.mlp.fc1(block.norm2(x))
            x = x + block.mlp.fc2(hidden * torch.sigmoid(1.702 * hidden))
        merger = visual.merger
        return merger.mlp(merger.ln_q(x).reshape(batch, IMAGE_TOKENS, -1))

    def opened(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``[batch, 25, width]`` and positions ``[3, 25]`` of a turn's opening with one picture."""
        device = pictures.device
        start = self.embed(torch.tensor([*self.opening, self.vision_start], device=device)).expand(len(pictures), -1, -1)
        positions = torch.cat([_line(0, BEFORE, device), picture_positions(BEFORE, device)], 1)
        return torch.cat([start, self.see(pictures)], 1), positions

    def rotation(self, positions: Tensor) -> Rotation:
        """Cosines and sines ``[batch, 1, length, head]`` of positions ``[3, batch, length]``."""
        angles = positions[self.sections].permute(1, 2, 0).float() * self.frequencies
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos(), angles.sin()

    def layers(self, x: Tensor, rotation: Rotation, mask: Tensor | None, first: int, last: int | None) -> Tensor:
        """Decoder layers ``first`` to ``last``; causal where no mask is given."""
        batch, length, _ = x.shape
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        bias = torch.zeros(mask.shape, dtype=self._precision(x), device=x.device).masked_fill(~mask, -1e4)
        for layer in self.model.model.language_model.layers[first:last]:
            attention = layer.self_attn
            hidden = self._norm(x, layer.input_layernorm.weight)
            q, k, v = (
                projection(hidden).view(batch, length, -1, self.head_size).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            heads = q.shape[1]
            q, k = _rotate(q, rotation), _rotate(k, rotation)
            mixed = _attend(q.reshape(batch, 1, heads * length, -1), k, v, bias).view(batch, heads, length, -1)
            x = x + attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
            hidden = self._norm(x, layer.post_attention_layernorm.weight)
            x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(hidden)) * layer.mlp.up_proj(hidden))
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the next token."""
        normed = self._norm(x, self.model.model.language_model.norm.weight)
        return F.linear(normed, self.model.get_input_embeddings().weight)

    def _precision(self, x: Tensor) -> torch.dtype:
        kind = x.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), self.eps)


def picture_positions(start: int, device: torch.device) -> Tensor:
    """Positions ``[3, 16]`` (time, row, column) of a picture that begins at ``start``."""
    rows = torch.arange(SPAN, device=device).repeat_interleave(SPAN)
    columns = torch.arange(SPAN, device=device).repeat(SPAN)
    return start + torch.stack([torch.zeros_like(rows), rows, columns])


def text_positions(start: int, length: int, device: torch.device) -> Tensor:
    """Positions ``[3, length]`` of text that begins at ``start``."""
    return _line(start, length, device)


def _line(start: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(start, start + length, device=device).expand(3, -1)


def _patches(pictures: Tensor) -> Tensor:
    """``[batch, 64, 192]`` in merge order, normalised as Qwen2-VL's image processor does."""
    mean, std = (torch.tensor(values, device=pictures.device)[None, :, None, None] for values in (MEAN, STD))
    x = ((pictures - mean) / std).view(-1, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(len(x), GRID * GRID, -1)[:, MERGE_ORDER.to(x.device)]


def _vision_rotation(config: Any) -> Rotation:
    size = config.embed_dim // config.num_heads
    frequencies = 1 / 10000 ** (torch.arange(0, size // 2, 2).float() / (size // 2))
    line = torch.arange(GRID).float()
    rows, columns = line.repeat_interleave(GRID)[:, None] * frequencies, line.repeat(GRID)[:, None] * frequencies
    angles = torch.cat([rows, columns] * 2, -1)[MERGE_ORDER]
    return angles.cos(), angles.sin()


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention written out: for heads of 32 in bfloat16 several times faster on a CPU than the fused kernel's backward.

    Query heads that share one key head stand one below the other in ``q``.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if bias is not None:
        length = k.shape[-2]
        scores = (scores.unflatten(2, (-1, length)).squeeze(1) + bias).view_as(scores)
    return torch.softmax(scores, -1).to(v.dtype) @ v


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    cosine, sine = rotation
    left, right = x.chunk(2, -1)
    return (x * cosine + torch.cat([-right, left], -1) * sine).to(x.dtype)
