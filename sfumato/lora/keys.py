"""What the keys of an adapter's file mean: the layouts that are read, what is refused, and the pairs of factors. PyTorch is not needed.

A key is ``<prefix><stem>.<half>``. The prefix tells the layout, the stem a module in that layout's names
(`sfumato.lora.modules` resolves them), and the half one of the module's two factors, or its alpha.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sfumato.errors import BrokenWeights
from sfumato.lora.contents import FLOATS, Contents, Entry, number, shown

MAX_RANK = 1 << 16
CONVERT = "Bring it into the plain layout first: sfumato lora convert FILE -o PLAIN."
WITHOUT_TEXT = "This leaves them out: sfumato lora convert FILE --without-text-encoders -o PLAIN."
MERGE = "Only plain LoRAs are read; merge it into the model with the program that made it."

# diffusers' prefixes; ComfyUI's; the flattened ones of sd-scripts, OneTrainer and SimpleTuner. save_lora_adapter's files and BFL's own
# have none.
DIFFUSERS = ("transformer.", "unet.")
COMFYUI = ("diffusion_model.", "model.diffusion_model.")
FLATTENED = ("lora_unet_", "lora_transformer_", "lycoris_")
PREFIXES = (*DIFFUSERS, *COMFYUI, *FLATTENED)
PEFT = "base_model.model."

TEXT = re.compile(r"(lora_(prior_)?te\d*_|text_encoders?(_\d+)?[._]|conditioner\.|cond_stage_model\.|te\d?\.)")
# Keys that other kinds of adapters have: what they are, and what can be done.
FOREIGN = (
    (r"dora_scale|lora_magnitude_vector|\.magnitude$", "is DoRA's", MERGE),
    (r"\.hada_", "is a LoHa's (LyCORIS)", MERGE),
    (r"\.lokr_", "is a LoKr's (LyCORIS)", MERGE),
    (r"(\.|^)(oft|boft)_|\.oft_(R|blocks|diag)", "is an OFT's or BOFT's (LyCORIS)", MERGE),
    (r"\.on_input$|\.ia3_l", "is an IA3's (LyCORIS)", MERGE),
    (r"\.(a1|a2|b1|b2)\.weight$", "is a GLoRA's (LyCORIS)", MERGE),
    (r"\.lora_mid\.", "is a LoCon's with a Tucker core (LyCORIS)", MERGE),
    (r"\.vera_lambda_", "is a VeRA's", MERGE),
    (r"\.lora_embedding_[AB]", "is of an embedding", MERGE),
    (r"\.(diff|diff_b|w_norm|b_norm|set_weight|reshape_weight)$|bias$", "is a whole weight or bias", MERGE),
    (r"\.processor\.|\.qkv_lora\d?\.|\.proj_lora\d?\.", "is of an old layout or XLabs'", "Load and save it with diffusers first."),
    (
        r"\.(scalar|scale|scale_weight|scale_input|weight_scale|input_scale)$|^scaled_fp8$",
        "is a scale beside the factors",
        "Only alphas are read; save the LoRA with the scale multiplied into its numbers.",
    ),
)
_HALVES = {
    "a": r"lora_A(?:\.default(?:_\d+)?)?\.weight|lora_down\.weight|lora\.down\.weight",
    "b": r"lora_B(?:\.default(?:_\d+)?)?\.weight|lora_up\.weight|lora\.up\.weight",
    "alpha": r"alpha",
}
_KEY = re.compile(r"([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*?)\.(?:" + "|".join(f"(?P<{half}>{words})" for half, words in _HALVES.items()) + ")")
_WORDS = {"a": "lora_A (lora_down)", "b": "lora_B (lora_up)", "alpha": "alpha"}


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One module's factors ``a [rank, in]`` and ``b [out, rank]``, and its alpha where the file has one.

    ``name`` is the module without prefix, in the names of the file's layout. A 1x1 convolution's factors have two more
    dimensions of 1, and ``pointwise`` says so.
    """

    name: str
    a: Entry
    b: Entry
    alpha: float | None
    pointwise: bool

    @property
    def rank(self) -> int:
        """Its rank."""
        return self.a.shape[0]

    @property
    def inputs(self) -> int:
        """Width of its input."""
        return self.a.shape[1]

    @property
    def outputs(self) -> int:
        """Width of its output."""
        return self.b.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """The pairs of a file, by name, and their common prefix (one of `PREFIXES`, `PEFT`, or empty)."""

    prefix: str
    pairs: tuple[Pair, ...]


def parse_keys(contents: Contents, where: str, *, without_text_encoders: bool = False, prefixes: Iterable[str] = PREFIXES) -> Parsed:
    """The factors in a file. Every key is used or refused.

    Args:
        contents: of the file.
        where: names it in errors.
        without_text_encoders: leave a text encoder's keys out; they are refused otherwise.
        prefixes: the prefixes that are understood; none is understood too.

    Raises:
        BrokenWeights: it is no plain LoRA of a denoiser; the message names the key and what to do.
    """
    entries = dict(contents.entries)
    if not entries:
        raise BrokenWeights(f"{where} is no LoRA: it has no keys.", hint="Is it the right file?")
    if without_text_encoders:
        entries = {key: entry for key, entry in entries.items() if not TEXT.match(key)}
        if not entries:
            raise BrokenWeights(f"{where} holds text encoders' keys only: nothing is left.", hint="It adapts no denoiser.")
    _refuse_foreign(entries, where, tuple(prefixes))
    modules: dict[tuple[str, str], dict[str, tuple[str, Entry]]] = {}
    for key, entry in entries.items():
        prefix, name, half = _meaning(key, where, tuple(prefixes))
        found = modules.setdefault((prefix, name), {})
        if half in found:
            raise BrokenWeights(f"{where}: {shown(key)} and {shown(found[half][0])} are the same factor.", hint="Remove one of them.")
        found[half] = (key, entry)
    used = sorted({prefix for prefix, _ in modules})
    if len(used) > 1:
        words = " and ".join(f"with {prefix}" if prefix else "with no prefix" for prefix in used[:2])
        raise BrokenWeights(f"{where} holds keys {words}: it is of no one model and layout.", hint="Split it into one file for each.")
    pairs = tuple(_paired(name, found, where) for (_, name), found in sorted(modules.items()))
    return Parsed(used[0], pairs)


def _refuse_foreign(entries: Mapping[str, Entry], where: str, prefixes: tuple[str, ...]) -> None:
    for key in sorted(entries):
        if TEXT.match(key):
            raise BrokenWeights(f"{where}: the key {shown(key)} is a text encoder's; only the denoiser is adapted here.", hint=WITHOUT_TEXT)
        if key.startswith("base_model.") and PEFT not in prefixes:
            hint = "Give the folder with its adapter_config.json, which holds the scale."
            raise BrokenWeights(f"{where}: the key {shown(key)} is PEFT's.", hint=hint)
        for pattern, what, hint in FOREIGN:
            if re.search(pattern, key):
                raise BrokenWeights(f"{where}: the key {shown(key)} {what}.", hint=hint)


def _meaning(key: str, where: str, prefixes: tuple[str, ...]) -> tuple[str, str, str]:
    """Prefix, name and half of a key."""
    match = _KEY.fullmatch(key)
    if match is None or match.lastgroup is None:
        hint = "Keys are such as transformer.<module>.lora_A.weight or lora_unet_<module>.lora_down.weight."
        raise BrokenWeights(f"{where}: the key {shown(key)} is not of a LoRA.", hint=hint)
    stem = match[1]
    prefix = next((prefix for prefix in prefixes if stem.startswith(prefix) and len(stem) > len(prefix)), "")
    return prefix, stem.removeprefix(prefix), match.lastgroup


def _paired(name: str, found: Mapping[str, tuple[str, Entry]], where: str) -> Pair:
    if "a" not in found or "b" not in found:
        there = " and ".join(_WORDS[half] for half in sorted(found))
        raise BrokenWeights(f"{where}: {name} has {there} only, no pair of lora_A and lora_B.", hint="Was it edited?")
    (key_a, a), (key_b, b) = found["a"], found["b"]
    for key, entry in (found["a"], found["b"]):
        _check_factor(key, entry, where)
    if a.shape[0] != b.shape[1]:
        raise BrokenWeights(f"{where}: {name} has factors {a.shape} and {b.shape}, which do not multiply.", hint="Was it edited?")
    if a.shape[0] > MAX_RANK:
        raise BrokenWeights(f"{where}: {name} has rank {a.shape[0]}; the limit is {MAX_RANK}.", hint="Compress it to a lower rank.")
    for key, entry in ((key_a, a), (key_b, b)):
        if not entry.finite:
            hint = "Its training diverged, or the file is damaged: train it again, or fetch it again."
            raise BrokenWeights(f"{where}: {shown(key)} holds numbers that are not finite.", hint=hint)
    alpha = _alpha(*found["alpha"], where) if "alpha" in found else None
    return Pair(name, a, b, alpha, len(a.shape) == 4 or len(b.shape) == 4)


def _check_factor(key: str, entry: Entry, where: str) -> None:
    if entry.dtype not in FLOATS:
        raise BrokenWeights(f"{where}: {shown(key)} is of {entry.dtype}.", hint=f"Factors are read in {', '.join(FLOATS)}.")
    shape = entry.shape
    if len(shape) == 4 and shape[2:] != (1, 1):
        words = f"is of a convolution of {shape[2]}x{shape[3]}"
        raise BrokenWeights(f"{where}: {shown(key)} {words}.", hint="Only linear layers and 1x1 convolutions are read.")
    if len(shape) not in (2, 4):
        raise BrokenWeights(f"{where}: {shown(key)} has the shape {shape}, which is no matrix.", hint="Only linear layers are read.")
    if 0 in shape:
        raise BrokenWeights(f"{where}: {shown(key)} has the shape {shape}: there is nothing in it.", hint="Its rank is 0: leave it out.")


def _alpha(key: str, entry: Entry, where: str) -> float:
    alpha = number(entry)
    if alpha is None:
        what = f"is of {entry.dtype} {entry.shape}, not one number"
        raise BrokenWeights(f"{where}: {shown(key)} {what}.", hint="An alpha is one number.")
    if not math.isfinite(alpha) or alpha == 0:
        what = "0, which makes the update of its module zero" if alpha == 0 else f"{alpha}"
        raise BrokenWeights(f"{where}: {shown(key)} is {what}.", hint="Was it edited? An alpha is often the rank.")
    return alpha
