"""Grounding: the understanding model's part of ArtAug's interaction (section 3.1), and questions that similar methods ask.

Answers of every model and backend are validated here before they are used. After an invalid answer the model is asked once more; a
second invalid answer is rejected, with its text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from services.grounding import questions
from services.grounding.answers import CONTROL, KEPT_RAW, clean
from services.grounding.profiles import Form, Profile, Strategy
from services.grounding.questions import Preference, VlmQuestion
from sfumato.errors import AnswerRejected, InvalidInput
from sfumato.runtime.images import resize
from sfumato.types import Image, Region

MIN_SIDE, MAX_SIDE = 8, 8192
SAMPLED = 0.7
"""Temperature of attempts after the greedy one."""

Answer = TypeVar("Answer")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question of a conversation, and the model's answer."""

    images: tuple[Image, ...]
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Query:
    """A question to a model: earlier turns, then images, then text.

    Attributes:
        images: images, resized for the model.
        text: the question.
        max_tokens: most tokens of the answer.
        schema: JSON schema of the answer, if any.
        choices: the only allowed answers, if any.
        attempt: 0 is greedy; later attempts are sampled with this seed.
        before: the conversation so far.
    """

    images: tuple[Image, ...]
    text: str
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    choices: tuple[str, ...] | None = None
    attempt: int = 0
    before: tuple[Turn, ...] = ()


class Backend(Protocol):
    """A vision-language model. ``concurrency`` is the number of parallel queries that suits it."""

    concurrency: int

    def answer(self, query: Query) -> str:
        """The model's text.

        Raises:
            Unavailable: the model does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Grounding:
    """The advice ``u(X)`` about one image, boxes in its pixels, and the model's text."""

    regions: tuple[Region, ...]
    raw: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The better of two images and the reason: the model's, or a description of its contradiction."""

    choice: Literal["A", "B", "tie"]
    reason: str


class GroundingEngine:
    """Asks one model by the conventions of its profile. Thread-safe if the backend is."""

    def __init__(self, backend: Backend, profile: Profile, strategy: str = Strategy.single_turn) -> None:
        """Use ``backend`` with ``profile`` and ``strategy``.

        Raises:
            InvalidInput: the profile's models do not support the strategy.
        """
        self.backend = backend
        self.profile = profile
        self.strategy = profile.strategy(strategy)

    def ground(self, image: Image, prompt: str) -> Grounding:
        """Regions of the image of ``prompt`` that could be more beautiful, each with a description of its better content.

        Raises:
            InvalidInput: the image or the prompt is unusable.
            AnswerRejected: two answers in a row were not valid.
            Unavailable: the model does not answer.
        """
        height, width = self._checked_size(image)
        question = questions.advice(self.profile, self.strategy, self._checked_text(prompt, "prompt"), width, height)
        regions, raw = self._asked((image,), question)
        return Grounding(regions, raw)

    def refine(self, prompt: str) -> tuple[str, str]:
        """The prompt without ambiguities (section 4.1.1), and the model's text.

        Raises:
            InvalidInput, AnswerRejected, Unavailable: as `ground`.
        """
        return self._asked((), questions.refinement(self.profile, self._checked_text(prompt, "prompt")))

    def ask(self, image: Image, question: str) -> bool:
        """Whether the answer to a yes/no question about the image is yes.

        Raises:
            InvalidInput, AnswerRejected, Unavailable: as `ground`.
        """
        self._checked_size(image)
        return self._asked((image,), questions.yes_or_no(self.profile, self._checked_text(question, "question")))[0]

    def compare(self, image_a: Image, image_b: Image, prompt: str, *, both_orders: bool = True) -> Comparison:
        """Which of two images of ``prompt`` is better.

        Args:
            image_a: image A, shown first.
            image_b: image B.
            prompt: the prompt of both.
            both_orders: ask again in the other order; if the model then prefers the other image, the result is a tie.

        Raises:
            InvalidInput, AnswerRejected, Unavailable: as `ground`.
        """
        self._checked_size(image_a, "image_a")
        self._checked_size(image_b, "image_b")
        question = questions.preference(self.profile, self._checked_text(prompt, "prompt"))
        first = self._preferred(image_a, image_b, question)
        if both_orders:
            second = self._preferred(image_b, image_a, question)
            if second.side == first.side:
                return Comparison("tie", _contradiction(first, second))
        return Comparison("A" if first.side == 0 else "B", first.reason)

    def each(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``call`` for every item, in order, with as many in parallel as profile and backend allow."""
        with ThreadPoolExecutor(max(1, min(self.backend.concurrency, self.profile.together))) as pool:
            return list(pool.map(call, items))

    def _preferred(self, first: Image, second: Image, question: VlmQuestion[Preference]) -> Preference:
        return self._asked((first, second), question)[0]

    def _asked(self, images: Sequence[Image], question: VlmQuestion[Answer]) -> tuple[Answer, str]:
        """The first valid answer of two attempts (greedy, then repair), and the model's text."""
        query = self._opened(tuple(map(self._shown, images)), question)
        raw = self._said(query)
        try:
            return question.read(raw), raw
        except AnswerRejected as rejected:
            raw = self._said(self._repair(query, rejected.message, raw))
        try:
            return question.read(raw), raw
        except AnswerRejected as rejected:
            # With the whole text, also if the error was in one value of it.
            raise AnswerRejected(rejected.message, raw[:KEPT_RAW]) from None

    def _opened(self, images: tuple[Image, ...], question: VlmQuestion[Any]) -> Query:
        """The query of a question, after its ``before`` questions were asked; images go with the first of them."""
        before: tuple[Turn, ...] = ()
        for text in question.before:
            answer = self._said(Query(images, text, questions.FREE, before=before))
            before, images = (*before, Turn(images, text, answer)), ()
        return Query(images, question.text, question.max_tokens, question.schema, question.choices, before=before)

    def _repair(self, query: Query, fault: str, raw: str) -> Query:
        """The second attempt: a model that supports conversations is told the error, others are asked again with sampling."""
        if self.profile.form is Form.bare:
            return replace(query, attempt=1)
        before = (*query.before, Turn(query.images, query.text, raw[:KEPT_RAW]))
        return replace(query, images=(), text=questions.REPAIR.format(fault=fault), attempt=1, before=before)

    def _said(self, query: Query) -> str:
        """The model's text, encodable as UTF-8: JSON can contain half of a surrogate pair, UTF-8 cannot."""
        return self.backend.answer(query).encode("utf-8", "replace").decode()

    def _checked_text(self, text: str, field: str) -> str:
        cleaned = clean(text)
        if not cleaned:
            raise InvalidInput(field, "is empty.", hint="Say what the picture shows.")
        if len(cleaned) > self.profile.max_prompt:
            raise InvalidInput(
                field, f"has {len(cleaned)} characters; {self.profile.name} takes {self.profile.max_prompt}.", hint="Shorten it."
            )
        if CONTROL in cleaned:
            raise InvalidInput(field, f"holds {CONTROL!r}, which begins a control token.", hint="Leave it out.")
        return cleaned

    def _checked_size(self, image: Image, field: str = "image") -> tuple[int, int]:
        height, width = image.shape[:2]
        if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
            raise InvalidInput(field, f"is {width} x {height} pixels; sides of {MIN_SIDE} to {MAX_SIDE} are taken.")
        return height, width

    def _shown(self, image: Image) -> Image:
        return resize(image, *self.profile.shown_size(image.shape[1], image.shape[0]))


def _contradiction(first: Preference, second: Preference) -> str:
    place = "first" if first.side == 0 else "second"
    reasons = [f"order {order}: {said.reason}" for order, said in (("A B", first), ("B A", second)) if said.reason]
    return " ".join([f"In both orders the picture shown {place} was preferred.", *reasons])
