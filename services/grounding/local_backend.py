"""The backend in this process, for machines without a server: transformers, and xgrammar for constrained decoding.

Greedy answers equal vLLM's with the same weights, free and constrained: same prompt template, same grammar (compact JSON), same
choice among the allowed tokens.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import torch
import xgrammar
from PIL import Image as Pillow
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, LogitsProcessorList

from services.grounding.engine import SAMPLED, Query
from sfumato.errors import BrokenWeights, MissingWeights


class LocalBackend:
    """A model loaded by ``from_pretrained``; one query at a time."""

    concurrency = 1

    def __init__(self, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Load model and processor.

        Raises:
            MissingWeights: the folder holds no model.
            BrokenWeights: its files cannot be read.
        """
        if not (folder / "config.json").is_file():
            raise MissingWeights(f"{folder} holds no model.", hint="Give a folder saved by save_pretrained.")
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder)
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
            self._model: Any = model.eval().to(device)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise BrokenWeights(f"The model in {folder} cannot be loaded: {error}") from error
        self._lock = threading.Lock()
        vocabulary = self._model.config.get_text_config().vocab_size
        info = xgrammar.TokenizerInfo.from_huggingface(
            self._processor.tokenizer, vocab_size=vocabulary, stop_token_ids=self._model.generation_config.eos_token_id
        )
        self._compiler = xgrammar.GrammarCompiler(info)

    @torch.inference_mode()
    def answer(self, query: Query) -> str:
        """The model's text, without special tokens."""
        messages, images = [], []
        for turn in query.before:
            messages += [_user(len(turn.images), turn.text), {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]}]
            images += turn.images
        messages.append(_user(len(query.images), query.text))
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pictures = [Pillow.fromarray(image) for image in (*images, *query.images)]
        inputs = self._processor(text=[text], images=pictures or None, return_tensors="pt").to(self._model.device)
        start = inputs["input_ids"].shape[1]
        constraint = self._constraint(query, start)
        with self._lock, torch.random.fork_rng(enabled=query.attempt > 0):
            if query.attempt:
                torch.manual_seed(query.attempt)
            sampling = {"do_sample": True, "temperature": SAMPLED, "top_k": 0} if query.attempt else {"do_sample": False}
            tokens = self._model.generate(**inputs, max_new_tokens=query.max_tokens, logits_processor=constraint, **sampling)
        return self._processor.tokenizer.decode(tokens[0, start:], skip_special_tokens=True)

    def _constraint(self, query: Query, start: int) -> LogitsProcessorList:
        if query.schema is not None:
            grammar = self._compiler.compile_json_schema(json.dumps(query.schema), any_whitespace=False, separators=(",", ":"))
        elif query.choices is not None:
            grammar = self._compiler.compile_grammar("root ::= " + " | ".join(json.dumps(choice) for choice in query.choices))
        else:
            return LogitsProcessorList()
        return LogitsProcessorList([_Constrained(grammar, start)])


def _user(images: int, text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


class _Constrained(LogitsProcessor):
    """Masks the tokens that the grammar does not allow next; for one sequence."""

    def __init__(self, grammar: xgrammar.CompiledGrammar, start: int) -> None:
        self._matcher = xgrammar.GrammarMatcher(grammar)
        self._mask = xgrammar.allocate_token_bitmask(1, grammar.tokenizer_info.vocab_size)
        self._read = start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for token in input_ids[0, self._read :].tolist():
            self._matcher.accept_token(token)
        self._read = input_ids.shape[1]
        if not self._matcher.is_terminated():
            self._matcher.fill_next_token_bitmask(self._mask)
            xgrammar.apply_token_bitmask_inplace(scores, self._mask.to(scores.device))
        return scores
