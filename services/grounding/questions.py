"""Questions in the form that the profile's models were trained on, and the parsers of their answers: one function per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.grounding.answers import parse_choice, parse_object, parse_prompt, parse_regions
from services.grounding.profiles import Form, Profile, Strategy
from sfumato.advice import CHOICE, REFINE, instruction
from sfumato.types import Region

Answer = TypeVar("Answer")

YES_NO = ("yes", "no")
SIDES = ("A", "B")
WORD = 8
"""Most tokens of a one-word answer."""
FREE = 512
"""Most tokens of an answer that only prepares the next question, and of a choice with its reason."""

DESCRIBE = """This picture was painted from the following description:

{prompt}

Describe what is there: every object, the light, the colours and the composition, and where in the picture each of them is."""
PLEASE = """Now analyse what would please the eye more. For each of these parts, say what is dull, flat or badly drawn, \
and what would make it beautiful without contradicting the description."""
REFINED = """Refine the following prompt for a text-to-image model. Make definite what is ambiguous in it, and keep its meaning: \
add no object and no style it does not ask for. A prompt that is clear already stays as it is.

{prompt}

Answer with a JSON object: {{"prompt": "..."}}"""
PREFERRED = """The first picture is A, the second is B. Both were painted from the following description:

{prompt}

Which is the better picture, more beautiful and no less true to the description? Say why in one or two sentences, then choose.
Answer with a JSON object: {{"reason": "...", "choice": "A" or "B"}}"""
ANSWERED = """{question}

Answer with a JSON object: {{"answer": "yes" or "no"}}"""
REPAIR = """This answer cannot be used. {fault} Give the answer again, complete and in the form that was asked for, and nothing else."""


@dataclass(frozen=True, slots=True)
class VlmQuestion(Generic[Answer]):
    """One question about images.

    Attributes:
        text: the question.
        read: parses the model's text; raises AnswerRejected.
        max_tokens: most tokens of the answer.
        schema: JSON schema of the answer, if any.
        choices: the only allowed answers, if any.
        before: questions that come first in the same conversation; their answers are free text.
    """

    text: str
    read: Callable[[str], Answer]
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    choices: tuple[str, ...] | None = None
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """The better of two images, 0 for the first shown, and the reason (empty if the model gives none)."""

    side: int
    reason: str = ""


def advice(profile: Profile, strategy: Strategy, prompt: str, width: int, height: int) -> VlmQuestion[tuple[Region, ...]]:
    """Regions of a ``width`` x ``height`` image that could be more beautiful; the prompt of the paper's Appendix B."""
    return VlmQuestion(
        instruction(prompt, profile.coordinates),
        lambda raw: parse_regions(raw, profile, width, height),
        profile.answer_tokens,
        schema=profile.answer_schema(width, height),
        before=(DESCRIBE.format(prompt=prompt), PLEASE) if strategy is Strategy.three_turn else (),
    )


def refinement(profile: Profile, prompt: str) -> VlmQuestion[str]:
    """The prompt without ambiguities (section 4.1.1)."""
    limit = profile.max_prompt
    if profile.form is Form.bare:
        return VlmQuestion(REFINE + prompt, lambda raw: parse_prompt(raw, limit), profile.answer_tokens)
    return VlmQuestion(
        REFINED.format(prompt=prompt),
        lambda raw: _inner(raw, "prompt", limit, lambda text: parse_prompt(text, limit)),
        profile.answer_tokens,
        schema=_object({"prompt": _text(limit)}),
    )


def yes_or_no(profile: Profile, question: str) -> VlmQuestion[bool]:
    """A yes/no question about an image."""
    if profile.form is Form.bare:
        return VlmQuestion(question, lambda raw: parse_choice(raw, YES_NO) == "yes", WORD, choices=YES_NO)
    return VlmQuestion(
        ANSWERED.format(question=question),
        lambda raw: _inner(raw, "answer", 3, lambda text: parse_choice(text, YES_NO)) == "yes",
        4 * WORD,
        schema=_object({"answer": {"enum": list(YES_NO)}}),
    )


def preference(profile: Profile, prompt: str) -> VlmQuestion[Preference]:
    """Which of two images of ``prompt`` is better."""
    if profile.form is Form.bare:
        return VlmQuestion(CHOICE, lambda raw: Preference(SIDES.index(parse_choice(raw, SIDES))), WORD, choices=SIDES)
    # The reason comes first, so that the choice follows from the reason.
    return VlmQuestion(
        PREFERRED.format(prompt=prompt),
        lambda raw: _preference(raw, profile.max_description),
        FREE,
        schema=_object({"reason": _text(profile.max_description), "choice": {"enum": list(SIDES)}}),
    )


def _preference(raw: str, limit: int) -> Preference:
    said = parse_object(raw, ("reason", "choice"), limit)
    return Preference(SIDES.index(parse_choice(said["choice"], SIDES)), said["reason"])


def _inner(raw: str, key: str, limit: int, read: Callable[[str], str]) -> str:
    return read(parse_object(raw, (key,), limit)[key])


def _object(properties: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False}


def _text(limit: int) -> Mapping[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": limit}
