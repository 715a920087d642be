"""The layout of kohya's sd-scripts, which ComfyUI and A1111 read too: flattened names, ``lora_down``, ``lora_up``, ``alpha``.

Flux has there the names of its first publication, in which q, k, v (and a single block's MLP) are one linear: the parts' factors
stand block-diagonally in the fused ones, so the fused update is exactly the parts' updates below each other. SDXL has the names of
its first publication too (``input_blocks``); SD 1 and 2 have diffusers' own with ``_`` for ``.``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sfumato.errors import BrokenWeights, InvalidInput

PREFIX = "lora_unet_"
PREFIXES = (PREFIX, "lora_transformer_", "diffusion_model.")  # sd-scripts', OneTrainer's, ComfyUI's own
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
_ELSE = "Export it as diffusers, which ComfyUI reads too."
Factors = dict[str, tuple[Tensor, Tensor]]

# Flux, one block: the published name and the linears of diffusers that stand in it one below the other.
_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn_qkv": _ATTENTION,
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
SINGLE: dict[str, tuple[str, ...]] = {
    "linear1": (*_ATTENTION, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
MLP_RATIO = 4  # of every Flux model: proj_mlp is four times as wide as the block
FLUX1_WIDTH = 3072  # the only one that the converter of diffusers takes

# Names of modules that hold an underscore of their own, and those that do not: what a flattened name may consist of.
_WITH_UNDERSCORE = [
    "single_transformer_blocks", "transformer_blocks", "down_blocks", "up_blocks", "mid_block", "to_q", "to_k", "to_v", "to_out",
    "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj", "ff_context", "norm1_context", "proj_in", "proj_out", "proj_mlp",
    "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2",
]  # fmt: skip
_PLAIN = ["attn", "attn1", "attn2", "ff", "net", "proj", "linear", "norm", "norm1", "attentions", "resnets"]
_TOKEN = re.compile(rf"({'|'.join(sorted(_WITH_UNDERSCORE, key=len, reverse=True))})(?=_|$)|[^_]+")

# SDXL's U-Net of its first publication: two resnets a block on the way down, three on the way up.
SGM_LAYERS = 2
_SGM_INNER = {"resnets": 0, "attentions": 1}
_SGM_EMBEDDINGS = {
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}


def flux_tensors(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A Flux adapter's tensors in this layout.

    Raises:
        InvalidInput: a module that has no place in it, or a linear of another shape than Flux's.
    """
    groups: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for name, pair in factors.items():
        stem, place = _flux_place(name)
        groups.setdefault(stem, {})[place] = pair
    tensors: dict[str, Tensor] = {}
    for stem, parts in sorted(groups.items()):
        tensors |= _entry(stem, *_fused(stem, parts))
    return tensors


def unet_tensors(factors: Mapping[str, tuple[Tensor, Tensor]], *, sgm: bool) -> dict[str, Tensor]:
    """A U-Net adapter's tensors in this layout; ``sgm`` for SDXL's own names, else diffusers'.

    Raises:
        InvalidInput: a module that has no place in it.
    """
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in sorted(factors.items()):
        tensors |= _entry(_sgm_name(name) if sgm else name.replace(".", "_"), a, b)
    return tensors


def read_factors(tensors: Mapping[str, Tensor], where: str) -> Factors:
    """Factors by diffusers' module names, alphas baked in; every tensor is used or refused.

    Any width is read (diffusers' own converter knows FLUX.1's only).

    Raises:
        BrokenWeights: naming the key that has no counterpart or no place.
    """
    factors: Factors = {}
    for stem in sorted({_stem(key, where) for key in tensors}):
        prefix = next(p for p in PREFIXES if stem.startswith(p))
        down, up = tensors.get(f"{stem}{DOWN}"), tensors.get(f"{stem}{UP}")
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise BrokenWeights(f"{where}: {stem} has no lora_down and lora_up that fit as matrices.", hint="Only linear layers are read.")
        alpha = tensors.get(f"{stem}{ALPHA}")
        if alpha is not None and float(alpha) != down.shape[0]:
            up = up.float() * (float(alpha) / down.shape[0])
        for name, pair in _split(stem.removeprefix(prefix).replace(".", "_"), down, up, where).items():
            if name in factors:
                raise BrokenWeights(f"{where}: {stem} means {name}, which another key means too.")
            factors[name] = pair
    return factors


def _stem(key: str, where: str) -> str:
    for suffix in (DOWN, UP, ALPHA):
        if key.endswith(suffix) and key.startswith(PREFIXES):
            return key.removesuffix(suffix)
    raise BrokenWeights(f"{where}: the key {key} is not of a denoiser's LoRA in kohya's layout.", hint="Remove it, or convert the file.")


def _entry(stem: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """Alpha is the rank, so the scale is one wherever the file is read."""
    key = f"{PREFIX}{stem}"
    return {f"{key}{DOWN}": down, f"{key}{UP}": up, f"{key}{ALPHA}": torch.tensor(float(down.shape[0]))}


def _flux_place(name: str) -> tuple[str, int]:
    """Published stem of a module, and its place among the parts fused there."""
    match = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", name)
    if match:
        single, index, rest = match.groups()
        for stem, parts in (SINGLE if single else DOUBLE).items():
            if rest in parts:
                return f"{'single' if single else 'double'}_blocks_{index}_{stem}", parts.index(rest)
    raise InvalidInput("adapter", f"{name} has no place in Flux's kohya layout.", hint=_ELSE)


def _flux_parts(stem: str) -> tuple[str, tuple[str, ...]] | None:
    """Diffusers' block and the linears in it for a published stem; ``None`` if it is not Flux's."""
    match = re.fullmatch(r"(double|single)_blocks_(\d+)_(.+)", stem)
    table = DOUBLE if match and match[1] == "double" else SINGLE
    if not match or match[3] not in table:
        return None
    return f"{'single_' if match[1] == 'single' else ''}transformer_blocks.{match[2]}", table[match[3]]


def _heights(stem: str, parts: tuple[str, ...], width: int) -> list[int]:
    """Output features of every part of a fused linear that takes ``width``."""
    return [MLP_RATIO * width if part == "proj_mlp" else width for part in parts]


def _fused(stem: str, pairs: Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    found = _flux_parts(stem)
    assert found is not None  # the stem comes from `_flux_place`
    _, parts = found
    if len(parts) == 1:
        return pairs[0]
    width = next(iter(pairs.values()))[0].shape[1]
    heights = _heights(stem, parts, width)
    down = torch.cat([pairs[place][0] for place in sorted(pairs)])
    up = torch.zeros(sum(heights), down.shape[0], dtype=torch.result_type(*next(iter(pairs.values()))))
    column = 0
    for place in sorted(pairs):
        a, b = pairs[place]
        if a.shape[1] != width or b.shape[0] != heights[place]:
            shapes = f"{b.shape[0]}x{a.shape[1]}, not {heights[place]}x{width}"
            raise InvalidInput("adapter", f"{parts[place]} of {stem} is {shapes}.", hint="Is it an adapter of Flux?")
        row = sum(heights[:place])
        up[row : row + heights[place], column : column + a.shape[0]] = b
        column += a.shape[0]
    return down, up


def _split(stem: str, down: Tensor, up: Tensor, where: str) -> Factors:
    """The linears of diffusers in one entry; a part whose rows are all zero is not there."""
    found = _flux_parts(stem)
    if found is None:
        return {_dotted(stem, where): (down, up)}
    block, parts = found
    if len(parts) == 1:
        return {f"{block}.{parts[0]}": (down, up)}
    heights = _heights(stem, parts, down.shape[1])
    if sum(heights) != up.shape[0]:
        raise BrokenWeights(f"{where}: {stem} is {up.shape[0]} high, not {sum(heights)}.", hint="Is it a LoRA of Flux?")
    factors: Factors = {}
    for part, rows in zip(parts, up.split(heights), strict=True):
        used = rows.ne(0).any(0)  # block-diagonal factors come apart into the ranks they were made of
        if used.any():
            factors[f"{block}.{part}"] = (down[used], rows[:, used])
    return factors


def _dotted(stem: str, where: str) -> str:
    """Diffusers' name of a flattened one, SDXL's first names included."""
    for name, published in _SGM_EMBEDDINGS.items():
        if stem == published:
            return name
    for pattern, place in (
        (r"input_blocks_(\d+)_([01])_(.+)", _down_place),
        (r"middle_block_([012])_(.+)", _middle_place),
        (r"output_blocks_(\d+)_([01])_(.+)", _up_place),
    ):
        if match := re.fullmatch(pattern, stem):
            stem = place(*match.groups()).replace("emb_layers_1", "time_emb_proj")
            break
    tokens = [match[0] for match in _TOKEN.finditer(stem)]
    for token in tokens:
        if not (token in _WITH_UNDERSCORE or token in _PLAIN or token.isdecimal()):
            raise BrokenWeights(f"{where}: {stem} names no linear layer that is known here.", hint="It is a LoRA of another model.")
    return ".".join(tokens)


def _down_place(index: str, inner: str, rest: str) -> str:
    block, layer = divmod(int(index) - 1, SGM_LAYERS + 1)
    return f"down_blocks_{block}_{('resnets', 'attentions')[int(inner)]}_{layer}_{rest}"


def _middle_place(index: str, rest: str) -> str:
    return f"mid_block_{('resnets_0', 'attentions_0', 'resnets_1')[int(index)]}_{rest}"


def _up_place(index: str, inner: str, rest: str) -> str:
    block, layer = divmod(int(index), SGM_LAYERS + 1)
    return f"up_blocks_{block}_{('resnets', 'attentions')[int(inner)]}_{layer}_{rest}"


def _sgm_name(name: str) -> str:
    """SDXL's first name of a module."""
    if name in _SGM_EMBEDDINGS:
        return _SGM_EMBEDDINGS[name]
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        way, block, kind, layer, rest = match.groups()
        index = int(block) * (SGM_LAYERS + 1) + int(layer) + (way == "down")
        stem = f"{'input' if way == 'down' else 'output'}_blocks_{index}_{_SGM_INNER[kind]}"
    elif match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        kind, layer, rest = match.groups()
        stem = f"middle_block_{1 if kind == 'attentions' else 2 * int(layer)}"
    else:
        raise InvalidInput("adapter", f"{name} has no place in SDXL's kohya layout.", hint=_ELSE)
    return f"{stem}_{rest.replace('.', '_').replace('time_emb_proj', 'emb_layers_1')}"
