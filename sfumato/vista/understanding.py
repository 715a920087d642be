"""The Vista understanding module: a small ``Qwen2VLForConditionalGeneration``, its tokenizer and its image processor.

64x64 pictures; patches of 8 pixels, merged two by two into 16 image tokens. Whole words, the numbers 0 to 64, the fragments
of the answer's JSON and the paper's long instruction are single tokens, so an answer about a picture takes about forty steps.
Every part is saved in its library's own format; vLLM serves it unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from sfumato.advice import CHOICE, DESCRIPTION, INSTRUCTION_HEAD, INSTRUCTION_TAIL, REFINE

SIZE, PATCH, MERGE = 64, 8, 2
GRID = SIZE // PATCH
IMAGE_TOKENS = (GRID // MERGE) ** 2
CONTEXT = 1024
REGISTERS = 7
"""Learned tokens before the picture: the first tokens of a causal model serve as a place to rest attention."""
END, PAD = "<|endoftext|>", "<|vision_pad|>"
SPECIAL = (
    END,
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    PAD,
    "<|image_pad|>",
    "<|video_pad|>",
    *(f"<|register_{i}|>" for i in range(REGISTERS)),
)
JSON_FRAGMENTS = ('[{"bbox":[', '"},{"bbox":[', f'],"{DESCRIPTION}":"', '"}]', "[]")
"""Compact JSON, which is what vLLM allows when free whitespace is off."""
WIDTH_VISION, LAYERS_VISION, WIDTH, LAYERS, HEADS, FEED_FORWARD = 128, 5, 160, 4, 5, 320


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer (nothing is unknown to it, nothing is lost) that keeps ``words`` whole.

    Text is lower-cased. Its chat template is Qwen2-VL's with the registers before the first picture and without a role.
    """
    letters = _byte_letters()
    spell = lambda text: "".join(letters[byte] for byte in text.encode())  # noqa: E731
    numbers = [form for i in range(SIZE + 1) for form in (str(i), f"{i},")]
    spaced = [form for word in sorted(set(words)) for form in (word, f" {word}")]
    vocabulary: dict[str, int] = {}
    for token in (*SPECIAL, *sorted(letters), *map(spell, (*JSON_FRAGMENTS, *numbers, *spaced, ", ", "?"))):
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Lowercase()
    pieces = "|".join(re.escape(fragment) for fragment in JSON_FRAGMENTS) + r"|\d+,?| ?[A-Za-z]+| ?[^\sA-Za-z0-9]|\s"
    split = pre_tokenizers.Split(Regex(pieces), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    texts = (INSTRUCTION_HEAD, INSTRUCTION_TAIL, REFINE, CHOICE)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in texts])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left", model_max_length=CONTEXT)
    fast.chat_template = _chat_template()
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLForConditionalGeneration:
    """The untrained model, 2.5 million parameters, in float32."""
    number = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": -(-len(tokenizer) // 8) * 8,
        "hidden_size": WIDTH,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 7, 7]},
        "bos_token_id": None,
        "eos_token_id": number(END),
        "pad_token_id": number(PAD),
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": LAYERS_VISION,
        "embed_dim": WIDTH_VISION,
        "hidden_size": WIDTH,
        "num_heads": WIDTH_VISION // 32,
        "mlp_ratio": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "in_channels": 3,
    }
    tokens: dict[str, Any] = {
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
    }
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)  # pyright: ignore
    model = Qwen2VLForConditionalGeneration(config).float()
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id, generation.do_sample = number(END), number(PAD), False
    with torch.no_grad():
        _order_numbers(model.get_input_embeddings(), tokenizer)
    return model


def save(model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model (fp16), tokenizer, chat template and image processor as ``from_pretrained`` and vLLM expect them."""
    from transformers import Qwen2VLImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = SIZE * SIZE
    Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, min_pixels=pixels, max_pixels=pixels).save_pretrained(
        folder
    )


def _order_numbers(embedding: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """Start the number tokens as sines of their value, so that near numbers begin near each other."""
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor)
    quarter = weight.shape[1] // 4
    values = torch.arange(SIZE + 1.0)[:, None]
    frequencies = torch.exp(torch.linspace(torch.pi / SIZE, torch.pi / 3, quarter).log())
    waves = torch.cat([torch.sin(values * frequencies), torch.cos(values * frequencies)], 1) * 0.02
    for form in ("{}", "{},"):
        ids = tokenizer.convert_tokens_to_ids([form.format(i) for i in range(SIZE + 1)])
        weight[ids, : 2 * quarter] = waves


def _byte_letters() -> list[str]:
    """The printable letter that byte-level tokenizers write for each of the 256 bytes (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(printable)))
    return [letters[byte] for byte in range(256)]


def _chat_template() -> str:
    registers = "".join(f"<|register_{i}|>" for i in range(REGISTERS))
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    is_picture = "{% if c['type'] == 'image' or 'image' in c or c['type'] == 'image_url' %}"
    part = is_picture + picture + "{% elif 'text' in c %}{{ c['text'] }}{% endif %}"
    parts = "{% for c in m['content'] %}" + part + "{% endfor %}"
    content = "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + parts + "{% endif %}"
    user = "<|im_start|>" + registers + content + "<|im_end|>"
    answer = "{{ m['content'] }}" + END
    roles = "{% if m['role'] == 'user' %}" + user + "{% elif m['role'] == 'assistant' %}" + answer + "{% endif %}"
    return "{% for m in messages %}" + roles + "{% endfor %}"
