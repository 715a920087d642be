"""What the understanding module is asked and the form of its answer (ArtAug, Appendix B).

The instruction is the paper's, word for word. The answer is a JSON list of boxes in absolute pixels and descriptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DESCRIPTION = "aesthetical description"
"""The paper's key of a region's text."""

COORDINATES = "absolute pixel coordinates"
"""The paper's words for the convention of boxes."""

INSTRUCTION_HEAD = """You are a helpful assistant. Given the image please analyze the following image and complete the following tasks:

1. Add more details to this image. For example, beautiful light and shadow, exquisite decorations, gorgeous clothing, \
beautiful natural landscapes, etc. Caution: The added details should be consistent with the original description:

"""
INSTRUCTION_TAIL = """

2. Mark the locations where these details can be added. Caution: Each entity should have only a bounding box in the format \
[x1, y1, x2, y2] represented using absolute pixel coordinates.

3. For each bounding box, imagine that we modify it into something extremely aesthetically pleasing. \
Please describe the image content of this part using words. Do not use 'should'. Just describe it. \
The aesthetical description should be long.

Please provide the results in JSON format as follows, which can be directly loaded by json.loads() in Python:

[
    {
        "bbox": [x1, y1, x2, y2],
        "aesthetical description": "..."
    },
    {
        "bbox": [x1, y1, x2, y2],
        "aesthetical description": "..."
    },
    ...
]"""
REFINE = "Refine this prompt, keep its meaning: "
CHOICE = "Which picture is more beautiful, A or B?"


def instruction(prompt: str, coordinates: str = COORDINATES) -> str:
    """The paper's question about a picture painted from ``prompt``; ``coordinates`` says in which convention boxes are wanted."""
    return INSTRUCTION_HEAD + prompt + INSTRUCTION_TAIL.replace(COORDINATES, coordinates)


def schema(max_regions: int, max_coordinate: int, max_description: int) -> Mapping[str, Any]:
    """The JSON schema of an answer, for constrained decoding: counts, coordinates and lengths are bounded."""
    entry = {
        "type": "object",
        "properties": {
            "bbox": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": max_coordinate},
                "minItems": 4,
                "maxItems": 4,
            },
            DESCRIPTION: {"type": "string", "maxLength": max_description},
        },
        "required": ["bbox", DESCRIPTION],
        "additionalProperties": False,
    }
    return {"type": "array", "items": entry, "minItems": 0, "maxItems": max_regions}
