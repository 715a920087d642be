"""Parsing of a vision-language model's answers, which are untrusted input: strict and bounded.

An answer that violates the schema is rejected as a whole. What a schema cannot express is corrected (a box outside the image) or
dropped (a box without area, a repetition).
"""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

from services.grounding.profiles import Profile
from sfumato.advice import DESCRIPTION
from sfumato.errors import AnswerRejected
from sfumato.texts import normalised
from sfumato.types import Box, Region

MAX_RAW = 100_000
"""Most characters of an answer; a longer one is rejected."""
KEPT_RAW = 2_000
"""Characters of a rejected answer that the report shows."""
CONTROL = "<|"
"""The first characters of chat templates' control tokens; texts in questions must not contain it."""
BLANK = " \t\r\n\ufeff\u200b\u00a0"
"""Characters before an answer's JSON that mean nothing."""
SAME = 0.9
"""Two boxes with a larger intersection over union are the same."""


def parse_regions(raw: str, profile: Profile, width: int, height: int) -> tuple[Region, ...]:
    """The regions of an ArtAug answer about a ``width`` x ``height`` image, boxes in its pixels.

    Boxes are clipped to the image; boxes with swapped corners or less than the profile's area, and repetitions, are dropped.

    Raises:
        AnswerRejected: the answer is not what the profile's schema asks for.
    """
    regions: list[Region] = []
    for box, description in _entries(raw, profile):
        scaled = _to_pixels(box, profile, width, height)
        if scaled is None or _area(scaled) < profile.min_area * width * height:
            continue
        if any(r.prompt == description or overlap(r.box, scaled) > SAME for r in regions):
            continue
        regions.append(Region(description, scaled))
    return tuple(regions)


def parse_choice(raw: str, choices: tuple[str, ...]) -> str:
    """The choice that an answer is, ignoring letter case and a final full stop.

    Raises:
        AnswerRejected: it is none of them.
    """
    said = normalised(raw[:100]).rstrip(".").casefold()
    for choice in choices:
        if said == choice.casefold():
            return choice
    raise AnswerRejected(f"The answer is none of {', '.join(choices)}.", raw[:KEPT_RAW])


def parse_prompt(raw: str, limit: int) -> str:
    """A refined prompt as one line of text, usable in later questions.

    Raises:
        AnswerRejected: it is empty or too long, or holds a control token.
    """
    text = clean(raw[:MAX_RAW])
    if not text or len(text) > limit:
        raise AnswerRejected(f"The refined prompt is empty or has more than {limit} characters.", raw[:KEPT_RAW])
    if CONTROL in text:
        raise AnswerRejected(f"The refined prompt holds {CONTROL!r}, which begins a control token.", raw[:KEPT_RAW])
    return text


def parse_object(raw: str, keys: tuple[str, ...], limit: int) -> dict[str, str]:
    """A JSON object with exactly these keys, every value a text of 1 to ``limit`` characters, each on one line.

    Raises:
        AnswerRejected: it is something else.
    """
    answer = _json(raw)
    if not isinstance(answer, dict) or set(answer) != set(keys):
        raise AnswerRejected(f"The answer is not a JSON object with the keys {', '.join(keys)} and no others.", raw[:KEPT_RAW])
    texts = {key: clean(value) for key, value in answer.items() if isinstance(value, str) and len(value) <= limit}
    for key in keys:
        if not texts.get(key):
            raise AnswerRejected(f"The value of {key!r} is not a text of 1 to {limit} characters.", raw[:KEPT_RAW])
    return texts


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / (_area(a) + _area(b) - shared)


def clean(text: str) -> str:
    """Text on one line, without control, format, private and unassigned characters."""
    kept = (" " if c.isspace() else c for c in normalised(text) if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join("".join(kept).split())


def _entries(raw: str, profile: Profile) -> list[tuple[tuple[float, float, float, float], str]]:
    answer = _json(raw)
    if not isinstance(answer, list) or len(answer) > profile.max_regions:
        raise AnswerRejected(f"The answer is not a list of at most {profile.max_regions} entries.", raw[:KEPT_RAW])
    entries = [_entry(item, profile.max_description) for item in answer]
    if None in entries:
        raise AnswerRejected(f"An entry of the answer is not a bbox of four numbers and a text {DESCRIPTION!r}.", raw[:KEPT_RAW])
    return [entry for entry in entries if entry is not None]


def _json(raw: str) -> Any:
    if len(raw) > MAX_RAW:
        raise AnswerRejected(f"The answer has more than {MAX_RAW} characters.", raw[:KEPT_RAW])
    try:
        return json.loads(_unfenced(raw.lstrip(BLANK)), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise AnswerRejected("The answer is not JSON.", raw[:KEPT_RAW]) from None


def _entry(item: Any, max_description: int) -> tuple[tuple[float, float, float, float], str] | None:
    if not isinstance(item, dict) or set(item) != {"bbox", DESCRIPTION}:
        return None
    box, description = item["bbox"], item[DESCRIPTION]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_whole(value) for value in box):
        return None
    if not isinstance(description, str) or len(description) > max_description:
        return None
    text = clean(description)
    return ((box[0], box[1], box[2], box[3]), text) if text else None


def _is_whole(value: object) -> bool:
    """Whether a value is a finite whole number of plausible size; ``True`` is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 and (isinstance(value, int) or (math.isfinite(value) and value.is_integer()))


def _to_pixels(box: tuple[float, float, float, float], profile: Profile, width: int, height: int) -> Box | None:
    """The box in the image's pixels, clipped; None if nothing is left or its corners are swapped."""
    across, down = profile.extent(width, height)
    x1, x2 = (round(min(max(value, 0), across) * width / across) for value in (box[0], box[2]))
    y1, y2 = (round(min(max(value, 0), down) * height / down) for value in (box[1], box[3]))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _unfenced(raw: str) -> str:
    """Without the Markdown fence that chat models often put around JSON."""
    text = raw.strip()
    if text.startswith("```") and text.endswith("```") and len(text) > 6:
        text = text[3:-3].removeprefix("json")
    return text


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
