"""What one family of vision-language models needs to be told, and how its answers are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sfumato.advice import schema
from sfumato.errors import InvalidInput


class Frame(StrEnum):
    """In which frame a model gives coordinates."""

    pixels = "pixels"
    """Pixels of the picture as the model was shown it."""
    thousandths = "thousandths"
    """0 to 1000 along either side, whatever the picture's size."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One family of models.

    Attributes:
        name: the profile, and the name under which its model is served.
        frame: the convention of coordinates.
        multiple: pictures are shown in sides that are multiples of this.
        max_pixels: and with no more pixels than this; a larger one is scaled down for the model.
        fixed_side: the one size the model knows, when it knows only one.
        max_regions: regions in one answer.
        min_area: share of the picture below which a box says nothing.
        max_prompt: characters of a prompt or a question.
        max_description: characters of one region's description.
        answer_tokens: tokens after which an answer is cut.
    """

    name: str
    frame: Frame
    multiple: int
    max_pixels: int
    fixed_side: int | None
    max_regions: int
    min_area: float
    max_prompt: int
    max_description: int
    answer_tokens: int

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in which a picture is shown to the model."""
        if self.fixed_side is not None:
            return self.fixed_side, self.fixed_side
        scale = min(1.0, (self.max_pixels / (width * height)) ** 0.5)
        sides = (max(self.multiple, int(side * scale) // self.multiple * self.multiple) for side in (width, height))
        return next(sides), next(sides)

    def extent(self, width: int, height: int) -> tuple[int, int]:
        """The largest coordinates the model may give for a picture of this size, x and y."""
        return (1000, 1000) if self.frame is Frame.thousandths else self.shown_size(width, height)

    def answer_schema(self, width: int, height: int) -> Mapping[str, Any]:
        """The JSON schema of an answer about a picture of this size."""
        return schema(self.max_regions, max(self.extent(width, height)), self.max_description)


VISTA = Profile("vista", Frame.pixels, 64, 64 * 64, 64, 5, 0.002, 500, 120, 200)
"""The built-in model. It knows pictures of 64x64 only; five elements are the most a scene has."""
QWEN2_VL = Profile("qwen2-vl", Frame.thousandths, 28, 1024 * 1024, None, 12, 0.005, 4000, 600, 2048)
"""Qwen2-VL was trained on coordinates of 0 to 1000 (its technical report, section 2.1)."""
QWEN25_VL = Profile("qwen2.5-vl", Frame.pixels, 28, 1024 * 1024, None, 12, 0.005, 4000, 600, 2048)
"""Qwen2.5-VL was trained on absolute pixels of the picture as it is shown (its technical report, section 2.1)."""
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (VISTA, QWEN2_VL, QWEN25_VL)}


def profile_named(name: str) -> Profile:
    """The profile of this name.

    Raises:
        InvalidInput: there is none.
    """
    if name not in PROFILES:
        raise InvalidInput("profile", f"{name!r} is not a profile.", hint=f"The profiles are {', '.join(PROFILES)}.")
    return PROFILES[name]
