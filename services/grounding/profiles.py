"""What one family of vision-language models needs to be told, and how its answers are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sfumato.advice import COORDINATES, schema
from sfumato.errors import InvalidInput


class Frame(StrEnum):
    """In which frame a model gives coordinates."""

    pixels = "pixels"
    """Pixels of the picture as the model was shown it."""
    thousandths = "thousandths"
    """0 to 1000 along either side, whatever the picture's size."""


class Form(StrEnum):
    """What an answer other than a list of regions looks like."""

    bare = "bare"
    """A word or a line, in one turn: all that a small model was taught."""
    json = "json"
    """A JSON object with a schema of its own, with reasons; the model can talk about its answers in several turns."""


class Strategy(StrEnum):
    """How advice is asked for."""

    single_turn = "single-turn"
    """The paper's: one question gives all boxes and descriptions."""
    three_turn = "three-turn"
    """What is there, what would please, and only then the list."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One family of models.

    Attributes:
        name: the profile, and the name under which `sfumato vlm serve` serves its model.
        frame: the convention of coordinates in answers.
        coordinates: the words that ask for coordinates in the paper's template.
        form: the form of answers other than regions.
        multiple: pictures are shown in sides that are multiples of this, and twice it at least.
        max_pixels: and with no more pixels than this; a larger one is scaled down for the model.
        fixed_side: the one size the model knows, when it knows only one.
        max_regions: regions in one answer.
        min_area: share of the picture below which a box says nothing.
        max_prompt: characters of a prompt or a question.
        max_description: characters of one region's description, and of a reason.
        answer_tokens: tokens after which an answer is cut.
        context: tokens of a whole conversation, two pictures, three turns and a repair included.
        together: questions that may be asked at once; 1 where answers must be the same to the last bit on every run, because
            what else is in a server's batch changes the last bits of its sums.
    """

    name: str
    frame: Frame
    coordinates: str
    form: Form
    multiple: int
    max_pixels: int
    fixed_side: int | None
    max_regions: int
    min_area: float
    max_prompt: int
    max_description: int
    answer_tokens: int
    context: int
    together: int

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in which a picture is shown to the model."""
        if self.fixed_side is not None:
            return self.fixed_side, self.fixed_side
        scale = min(1.0, (self.max_pixels / (width * height)) ** 0.5)
        sides = (max(2 * self.multiple, int(side * scale) // self.multiple * self.multiple) for side in (width, height))
        return next(sides), next(sides)

    @property
    def pixels(self) -> tuple[int, int]:
        """The fewest and the most pixels of a picture as it is shown: within them the model's processor leaves its size alone."""
        if self.fixed_side is not None:
            return self.fixed_side**2, self.fixed_side**2
        return (2 * self.multiple) ** 2, self.max_pixels

    def extent(self, width: int, height: int) -> tuple[int, int]:
        """The largest coordinates the model may give for a picture of this size, x and y."""
        return (1000, 1000) if self.frame is Frame.thousandths else self.shown_size(width, height)

    def answer_schema(self, width: int, height: int) -> Mapping[str, Any]:
        """The JSON schema of an answer about a picture of this size."""
        return schema(self.max_regions, max(self.extent(width, height)), self.max_description)

    def strategy(self, name: str) -> Strategy:
        """The strategy of this name.

        Raises:
            InvalidInput: there is none, or this profile's models cannot follow it.
        """
        if name not in tuple(Strategy):
            raise InvalidInput("strategy", f"{name!r} is not a strategy.", hint=f"The strategies are {', '.join(Strategy)}.")
        if name == Strategy.three_turn and self.form is Form.bare:
            raise InvalidInput("strategy", f"profile {self.name} knows single-turn only: its model was taught no conversation.")
        return Strategy(name)


RELATIVE = "relative coordinates from 0 to 1000"


def _qwen(name: str, frame: Frame, coordinates: str, multiple: int) -> Profile:
    return Profile(name, frame, coordinates, Form.json, multiple, 1024 * 1024, None, 12, 0.005, 4000, 600, 3072, 20480, 8)


VISTA = Profile("vista", Frame.pixels, COORDINATES, Form.bare, 64, 64 * 64, 64, 5, 0.002, 500, 120, 200, 1024, 1)
"""The built-in model. It knows pictures of 64x64 only; five elements are the most a scene has."""
QWEN2_VL = _qwen("qwen2-vl", Frame.thousandths, COORDINATES, 28)
"""Qwen2-VL gives 0 to 1000 whatever it is asked for (its technical report, section 2.1); it is asked in the paper's words."""
QWEN25_VL = _qwen("qwen2.5-vl", Frame.pixels, COORDINATES, 28)
"""Qwen2.5-VL gives absolute pixels of the picture as it is shown (its technical report, section 2.1)."""
QWEN3_VL = _qwen("qwen3-vl", Frame.thousandths, RELATIVE, 32)
"""Qwen3-VL went back to relative coordinates of 0 to 1000 (its README and grounding cookbook); patches of 16, merged by two."""
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (VISTA, QWEN2_VL, QWEN25_VL, QWEN3_VL)}


def profile_named(name: str) -> Profile:
    """The profile of this name.

    Raises:
        InvalidInput: there is none.
    """
    if name not in PROFILES:
        raise InvalidInput("profile", f"{name!r} is not a profile.", hint=f"The profiles are {', '.join(PROFILES)}.")
    return PROFILES[name]
