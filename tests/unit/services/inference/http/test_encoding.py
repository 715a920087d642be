"""What a file says of how it was made, read as the common tools read it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pillow

from services.inference.http.encoding import GenerationParameters, encode

IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
PARAMETERS = GenerationParameters(
    "a moon,\nover: a lake", "blur", 2**63 - 1, 20, 3.5, 64, 32, "vista@production", "ab" * 32, 0.5, {"Adapters": "a:1, b:2"}
)
# Stable Diffusion web UI, infotext: a name, and words without commas or a JSON string.
PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read(text: str) -> dict[str, str]:
    """As the web UI reads it: the last line is parameters, from ``Negative prompt:`` on the lines are the negative prompt's."""
    *lines, last = text.strip().split("\n")
    pairs = PARAMETER.findall(last)
    assert len(pairs) >= 3  # else it would take the line for the prompt's
    found = {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}
    prompt: list[str] = []
    negative: list[str] = []
    for line in lines:
        if line.startswith("Negative prompt:"):
            negative.append(line.removeprefix("Negative prompt:").strip())
        else:
            (negative if negative else prompt).append(line)
    return {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative), **found}


def test_a_png_carries_its_parameters_and_its_version() -> None:
    with Pillow.open(io.BytesIO(encode(IMAGE, PARAMETERS))) as picture:
        assert np.array_equal(np.array(picture), IMAGE)
        words, version = picture.info["parameters"], picture.info["model_version"]
    found = read(words)
    expected = {"Prompt": PARAMETERS.prompt, "Negative prompt": "blur", "Steps": "20", "Seed": str(2**63 - 1), "CFG scale": "3.5"}
    assert found["Size"] == "64x32" and found.items() >= expected.items() and found["Adapters"] == "a:1, b:2"
    assert (found["Model hash"], found["Model"], found["Adapter scale"], version) == ("ab" * 5, "vista@production", "0.5", "ab" * 32)
    assert encode(IMAGE, PARAMETERS) == encode(IMAGE, PARAMETERS)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_carry_them_where_the_same_tools_look(kind: str) -> None:
    with Pillow.open(io.BytesIO(encode(IMAGE, PARAMETERS, kind))) as picture:  # pyright: ignore[reportArgumentType]
        comment = picture.getexif().get_ifd(0x8769)[0x9286]
        assert picture.format == kind.upper()
    assert comment.startswith(b"UNICODE\0") and comment[8:].decode("utf-16-be") == PARAMETERS.infotext()


@pytest.mark.parametrize("prompt", ["луна 月 🌙", "a\0b\x1bc", "Steps: 1, Seed: 2", "x" * 32_000])
def test_any_prompt_can_be_written_and_read_back(prompt: str) -> None:
    with Pillow.open(io.BytesIO(encode(IMAGE, replace(PARAMETERS, prompt=prompt)))) as picture:
        found = read(picture.info["parameters"])
    assert found["Prompt"] == prompt.replace("\0", " ").replace("\x1b", " ") and found["Seed"] == str(2**63 - 1)
