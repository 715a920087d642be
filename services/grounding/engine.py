"""Grounding: the understanding module's side of ArtAug's interaction (section 3.1), and the questions of its siblings.

One single-turn dialogue gives all boxes and descriptions at once. Whatever model answers, and over whatever transport, its
words are validated here before anybody else sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from services.grounding.answers import clean, parse_choice, parse_prompt, parse_regions
from services.grounding.profiles import Profile
from sfumato.advice import CHOICE, REFINE, instruction
from sfumato.errors import AnswerRejected, InvalidInput
from sfumato.runtime.images import resize
from sfumato.types import Image, Region

MIN_SIDE, MAX_SIDE = 8, 8192
ATTEMPTS = 2
YES_NO = ("yes", "no")
SIDES = ("A", "B")

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Query:
    """One turn: pictures, then text.

    Attributes:
        images: as the model is to see them.
        text: what is asked.
        max_tokens: where the answer is cut.
        schema: a JSON schema the answer must follow, if any.
        choices: the only answers allowed, if any.
        attempt: 0 is greedy; later attempts are sampled, by this seed.
    """

    images: tuple[Image, ...]
    text: str
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    choices: tuple[str, ...] | None = None
    attempt: int = 0


class Backend(Protocol):
    """A vision-language model, wherever it runs. ``concurrency`` queries at once are good for it."""

    concurrency: int

    def answer(self, query: Query) -> str:
        """The model's words.

        Raises:
            Unavailable: the model does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Grounding:
    """The advice ``u(X)`` about one picture, boxes in its own pixels, and the model's own words."""

    regions: tuple[Region, ...]
    raw: str


class GroundingEngine:
    """Asks one model, whose conventions are the profile's. Thread-safe where the backend is."""

    def __init__(self, backend: Backend, profile: Profile) -> None:
        self.backend = backend
        self.profile = profile

    def ground(self, image: Image, prompt: str) -> Grounding:
        """Where the picture painted from ``prompt`` could be more beautiful, and how it would look there.

        Raises:
            InvalidInput: the picture or the prompt is unusable.
            AnswerRejected: two answers in a row were not valid.
            Unavailable: the model does not answer.
        """
        profile = self.profile
        height, width = self._checked_size(image)
        text = instruction(self._checked_text(prompt, "prompt"))
        query = Query((self._shown(image),), text, profile.answer_tokens, schema=profile.answer_schema(width, height))
        return self._asked(query, lambda raw: Grounding(parse_regions(raw, profile, width, height), raw))

    def ground_all(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Grounding]:
        """`ground` for many pictures, as many at once as the backend likes; in order.

        Raises:
            InvalidInput: also when there are not as many prompts as pictures.
        """
        if len(images) != len(prompts):
            raise InvalidInput("prompts", f"there are {len(prompts)} for {len(images)} pictures.")
        with ThreadPoolExecutor(max(1, self.backend.concurrency)) as pool:
            return list(pool.map(self.ground, images, prompts))

    def refine(self, prompt: str) -> str:
        """The prompt with what is ambiguous in it made definite (section 4.1.1); a clear prompt stays as it is."""
        limit = self.profile.max_prompt
        query = Query((), REFINE + self._checked_text(prompt, "prompt"), self.profile.answer_tokens)
        return self._asked(query, lambda raw: parse_prompt(raw, limit))

    def ask(self, image: Image, question: str) -> bool:
        """Whether the answer to a yes/no question about the picture is yes."""
        self._checked_size(image)
        query = Query((self._shown(image),), self._checked_text(question, "question"), 8, choices=YES_NO)
        return self._asked(query, lambda raw: parse_choice(raw, YES_NO)) == "yes"

    def compare(self, image_a: Image, image_b: Image, *, both_orders: bool = False) -> Literal["A", "B", "tie"]:
        """Which of two pictures is more beautiful.

        Args:
            image_a: shown first.
            image_b: shown second.
            both_orders: ask a second time the other way round; a model that then changes its mind makes a tie.
        """
        first = self._more_beautiful(image_a, image_b)
        if both_orders and self._more_beautiful(image_b, image_a) == first:
            return "tie"
        return "A" if first == 0 else "B"

    def _more_beautiful(self, first: Image, second: Image) -> int:
        for image in (first, second):
            self._checked_size(image)
        query = Query((self._shown(first), self._shown(second)), CHOICE, 8, choices=SIDES)
        return SIDES.index(self._asked(query, lambda raw: parse_choice(raw, SIDES)))

    def _asked(self, query: Query, read: Callable[[str], Answer]) -> Answer:
        """The first valid answer of two: one greedy, one sampled."""
        for attempt in range(ATTEMPTS - 1):
            try:
                return read(self.backend.answer(_again(query, attempt)))
            except AnswerRejected:
                continue
        return read(self.backend.answer(_again(query, ATTEMPTS - 1)))

    def _checked_text(self, text: str, field: str) -> str:
        cleaned = clean(text)
        if not cleaned:
            raise InvalidInput(field, "is empty.", hint="Say what the picture shows.")
        if len(cleaned) > self.profile.max_prompt:
            raise InvalidInput(
                field, f"has {len(cleaned)} characters; {self.profile.name} takes {self.profile.max_prompt}.", hint="Shorten it."
            )
        if "<|" in cleaned:
            raise InvalidInput(field, "holds '<|', which begins a control token.", hint="Leave it out.")
        return cleaned

    def _checked_size(self, image: Image) -> tuple[int, int]:
        height, width = image.shape[:2]
        if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
            raise InvalidInput("image", f"is {width} x {height} pixels; sides of {MIN_SIDE} to {MAX_SIDE} are taken.")
        return height, width

    def _shown(self, image: Image) -> Image:
        return resize(image, *self.profile.shown_size(image.shape[1], image.shape[0]))


def _again(query: Query, attempt: int) -> Query:
    return Query(query.images, query.text, query.max_tokens, query.schema, query.choices, attempt)
