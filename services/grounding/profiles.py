"""The conventions of each family of vision-language models: coordinates, image sizes, limits, and the form of answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sfumato.advice import COORDINATES, schema
from sfumato.errors import InvalidInput


class Frame(StrEnum):
    """The coordinate system of a model's boxes."""

    pixels = "pixels"
    """Pixels of the image as shown to the model."""
    thousandths = "thousandths"
    """0 to 1000 along each side, for any image size."""


class Form(StrEnum):
    """The form of answers other than a list of regions."""

    bare = "bare"
    """A word or a line, in one turn: a small model was trained on nothing else."""
    json = "json"
    """A JSON object by schema, with reasons; the model supports conversations of several turns."""


class Strategy(StrEnum):
    """How many questions ask for advice."""

    single_turn = "single-turn"
    """The paper's: one question returns all boxes and descriptions."""
    three_turn = "three-turn"
    """Three questions in a conversation: a description of the image, an analysis of what could be better, then the list."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The conventions of one family of models.

    Attributes:
        name: the profile's name, under which `sfumato vlm serve` serves its model.
        frame: coordinate system of boxes in answers.
        coordinates: phrase for coordinates in the paper's prompt template.
        form: form of answers other than regions.
        multiple: sides of shown images are multiples of this, at least two of them.
        max_pixels: most pixels of a shown image; larger images are scaled down.
        fixed_side: side of the only image size the model supports; None if it supports several.
        max_regions: most regions in one answer.
        min_area: least share of the image that a box must cover.
        max_prompt: most characters of a prompt or a question.
        max_description: most characters of a region's description, and of a reason.
        answer_tokens: most tokens of an answer.
        context: tokens of a whole conversation: two images, three turns and a repair.
        together: questions that may be asked at the same time; 1 if answers must be identical in every run, because the other requests in a
            server's batch change the last bits of its logits.
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
        """Width and height of an image as shown to the model."""
        if self.fixed_side is not None:
            return self.fixed_side, self.fixed_side
        scale = min(1.0, (self.max_pixels / (width * height)) ** 0.5)
        sides = (max(2 * self.multiple, int(side * scale) // self.multiple * self.multiple) for side in (width, height))
        return next(sides), next(sides)

    @property
    def pixels(self) -> tuple[int, int]:
        """Least and most pixels of a shown image: the model's processor does not resize images within this range."""
        if self.fixed_side is not None:
            return self.fixed_side**2, self.fixed_side**2
        return (2 * self.multiple) ** 2, self.max_pixels

    def extent(self, width: int, height: int) -> tuple[int, int]:
        """The largest x and y coordinates in answers about an image of this size."""
        return (1000, 1000) if self.frame is Frame.thousandths else self.shown_size(width, height)

    def answer_schema(self, width: int, height: int) -> Mapping[str, Any]:
        """The JSON schema of a list of regions in an image of this size."""
        return schema(self.max_regions, max(self.extent(width, height)), self.max_description)

    def strategy(self, name: str) -> Strategy:
        """The strategy of this name.

        Raises:
            InvalidInput: it does not exist, or this profile's models do not support it.
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
"""The built-in model. It supports 64x64 images only; a scene has at most five elements."""
QWEN2_VL = _qwen("qwen2-vl", Frame.thousandths, COORDINATES, 28)
"""Qwen2-VL answers with 0 to 1000, whatever the prompt asks (its technical report, section 2.1); the prompt is the paper's."""
QWEN25_VL = _qwen("qwen2.5-vl", Frame.pixels, COORDINATES, 28)
"""Qwen2.5-VL answers with absolute pixels of the shown image (its technical report, section 2.1)."""
QWEN3_VL = _qwen("qwen3-vl", Frame.thousandths, RELATIVE, 32)
"""Qwen3-VL answers with relative coordinates of 0 to 1000 (its README and grounding cookbook); patches of 16, merged by two."""
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (VISTA, QWEN2_VL, QWEN25_VL, QWEN3_VL)}


def profile_named(name: str) -> Profile:
    """The profile of this name.

    Raises:
        InvalidInput: it does not exist.
    """
    if name not in PROFILES:
        raise InvalidInput("profile", f"{name!r} is not a profile.", hint=f"The profiles are {', '.join(PROFILES)}.")
    return PROFILES[name]
