"""What a file says of how it was made, as the packages that people use read it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import exifread
import numpy as np
import piexif
import piexif.helper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from sd_parsers import ParserManager
from sd_prompt_reader.image_data_reader import ImageDataReader

from sfumato.errors import InvalidInput
from sfumato.runtime.infotext import CUT, GenerationParameters
from sfumato.runtime.picture_files import LONGEST_SEGMENT, LONGEST_TEXT, Format, encode, format_of, user_comment
from sfumato.types import Region

IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
PARAMETERS = GenerationParameters(
    prompt="a moon,\nover: a lake",
    negative_prompt="blur",
    seed=2**63 - 1,
    steps=20,
    sampler="Euler",
    guidance_scale=3.5,
    width=64,
    height=32,
    model="vista@production",
    version="ab" * 32,
    adapter_scale=0.5,
    regions=(Region("a red house, Seed: 1, Steps: 2", (0, 0, 32, 64), 2.0),),
    settings={"Denoising strength": "0.8", "Adapters": "a:1, b:2"},
)
FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")
# Stable Diffusion web UI, modules/infotext_utils.py: a name, and a value without commas or a JSON string.
PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def text_of(file: bytes) -> str:
    """The text in a file: PNG's by Pillow, JPEG's and WebP's by piexif."""
    with Pillow.open(io.BytesIO(file)) as picture:
        if picture.format == "PNG":
            return picture.info["parameters"]
    return piexif.helper.UserComment.load(piexif.load(file)["Exif"][piexif.ExifIFD.UserComment])


def web_ui(text: str) -> dict[str, str]:
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


def sd_prompt_reader(file: bytes) -> dict[str, str]:
    read = ImageDataReader(io.BytesIO(file))
    assert read.tool == "A1111 webUI" and read.status.name == "READ_SUCCESS"
    names = {"model": "Model", "sampler": "Sampler", "seed": "Seed", "cfg": "CFG scale", "steps": "Steps", "size": "Size"}
    return {"Prompt": read.positive, "Negative prompt": read.negative} | {names[key]: value for key, value in read.parameter.items()}


def sd_parsers(file: bytes) -> dict[str, str]:
    read = ParserManager(normalize_parameters=False).parse(io.BytesIO(file))
    assert read is not None and read.generator.value == "AUTOMATIC1111"
    (sampler,) = read.samplers
    texts = {"Prompt": sampler.prompts, "Negative prompt": sampler.negative_prompts}
    assert sampler.model is not None
    return {
        **{name: prompts[0].value for name, prompts in texts.items() if prompts},
        "Sampler": sampler.name,
        "Model hash": sampler.model.hash or "",
        **{name: str(value) for name, value in (*sampler.parameters.items(), *read.metadata.items())},
    }


def by_the_web_ui(file: bytes) -> dict[str, str]:
    return web_ui(text_of(file))


READERS = (sd_prompt_reader, sd_parsers, by_the_web_ui)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_the_same_in_every_format(reader: Callable[[bytes], dict[str, str]], kind: Format) -> None:
    found = reader(encode(IMAGE, PARAMETERS, kind))
    expected = {
        "Prompt": "a moon,\nover: a lake",
        "Negative prompt": "blur",
        "Steps": "20",
        "Sampler": "Euler",
        "CFG scale": "3.5",
        "Seed": str(2**63 - 1),
        "Size": "64x32",
    }
    assert found.items() >= expected.items()


def test_the_fields_come_in_the_web_uis_order_and_the_rest_behind_them() -> None:
    text = PARAMETERS.infotext()
    names = [name for name, _ in PARAMETER.findall(text.split("\n")[-1])]
    assert names[:7] == ["Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model"] and names[-1] == "Version"
    found = web_ui(text)
    assert (found["Model hash"], found["Model"], found["Adapter scale"]) == ("ab" * 5, "vista@production", "0.5")
    assert (found["Adapters"], found["Denoising strength"]) == ("a:1, b:2", "0.8")
    assert found["Region 0"] == "0,0,32,64 x 2: a red house, Seed: 1, Steps: 2"


def test_what_is_not_known_is_left_out() -> None:
    text = replace(PARAMETERS, version="", adapter_scale=None, negative_prompt="", model="").infotext()
    assert not {"Model", "Model hash", "Adapter scale"} & web_ui(text).keys() and "Negative prompt:" not in text


def test_a_png_has_the_models_whole_version_and_its_pixels() -> None:
    with Pillow.open(io.BytesIO(encode(IMAGE, PARAMETERS))) as picture:
        assert np.array_equal(np.array(picture), IMAGE) and picture.info["model_version"] == "ab" * 32


@pytest.mark.parametrize("kind", FORMATS)
def test_equal_pictures_and_parameters_give_equal_bytes(kind: Format) -> None:
    assert encode(IMAGE, PARAMETERS, kind) == encode(IMAGE, PARAMETERS, kind)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_the_exif_field_has_the_type_and_the_code_that_the_standard_names(kind: Format) -> None:
    file = encode(IMAGE, PARAMETERS, kind)
    if kind == "jpeg":  # ExifRead looks for WebP's block behind a prefix that neither Pillow nor piexif writes there
        assert exifread.process_file(io.BytesIO(file), details=True)["EXIF UserComment"].field_type == 7
    theirs = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: piexif.helper.UserComment.dump(PARAMETERS.infotext(), "unicode")}})
    assert piexif.load(user_comment(PARAMETERS.infotext())) == piexif.load(theirs)
    with Pillow.open(io.BytesIO(file)) as picture:
        assert picture.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be") == PARAMETERS.infotext()


HOSTILE = {
    "other scripts": ("луна 月 🌙 عربى", "луна 月 🌙 عربى"),
    "control characters": ("a\0b\x1bc\x85d\u2028e", "a b c d e"),
    "line ends of Windows": ("a\r\nb", "a\nb"),
    "a lone surrogate": ("a\ud800b", "a\ufffdb"),
    "parameters as the prompt": ("Steps: 1, Seed: 2", "Steps: 1, Seed: 2"),
    "parameters as a line": ("a moon\nSteps: 1, Sampler: x, Seed: 2", "a moon\nSteps : 1, Sampler: x, Seed: 2"),
    "another negative prompt": ("a moon\nNegative prompt: b", "a moon\nNegative prompt : b"),
    "quotes": ('"a", \\"b\\": {c}', '"a", \\"b\\": {c}'),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("prompt", "expected"), HOSTILE.values(), ids=HOSTILE)
def test_no_prompt_is_taken_for_a_part_of_the_format(prompt: str, expected: str, kind: Format) -> None:
    made = replace(PARAMETERS, prompt=prompt, negative_prompt=prompt, regions=(Region(prompt, (0, 0, 1, 1)),), settings={"Note": prompt})
    file = encode(IMAGE, made, kind)
    for reader in READERS:
        found = reader(file)
        same = {"Prompt": expected, "Negative prompt": expected, "Seed": str(2**63 - 1), "Steps": "20", "Sampler": "Euler"}
        assert found.items() >= same.items(), reader


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300), st.sampled_from(FORMATS))
def test_any_text_can_be_written_and_leaves_the_other_fields_alone(prompt: str, negative: str, kind: Format) -> None:
    made = replace(PARAMETERS, prompt=prompt, negative_prompt=negative, model=negative[:100], regions=(Region(prompt, (0, 0, 1, 1)),))
    found = web_ui(text_of(encode(IMAGE, made, kind)))
    assert (found["Seed"], found["Steps"], found["Size"]) == (str(2**63 - 1), "20", "64x32")


LONG = {
    "prompt": {"prompt": "🌙" * 32_000},
    "negative prompt": {"negative_prompt": "blur, " * 5_000},
    "regions": {"regions": tuple(Region("a: red, house " * 700, (0, 0, 32, 64)) for _ in range(64))},
    "everything": {
        "prompt": "🌙" * 32_000,
        "negative_prompt": ":" * 32_000,
        "model": "m" * 1000,
        "regions": tuple(Region('":\n' * 3_000, (0, 0, 32, 64), 0.123456) for _ in range(64)),
    },
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
def test_parameters_that_a_format_does_not_hold_are_shortened_and_say_so(long: dict[str, object], kind: Format) -> None:
    made = replace(PARAMETERS, **long)
    file = encode(IMAGE, made, kind)
    text = text_of(file)
    found = web_ui(text)
    assert (found["Seed"], found["Steps"], found["Sampler"]) == (str(2**63 - 1), "20", "Euler")
    whole = made.infotext()
    most = LONGEST_SEGMENT if kind == "jpeg" else LONGEST_TEXT

    def size(text: str) -> int:
        return len(text.encode() if kind == "png" else user_comment(text))

    assert size(text) <= most
    if text == whole:
        assert "Shortened" not in found
        return
    length = int(re.fullmatch(r"values to (\d+) characters", found["Shortened"])[1])  # pyright: ignore[reportOptionalSubscript]
    assert CUT in text and max(map(len, (made.prompt, made.negative_prompt, *(region.prompt for region in made.regions)))) > length
    assert size(made.infotext(length + 1)) > most  # not a character less than fits
    assert found["Prompt"] == made.prompt or found["Prompt"] == made.prompt[:length] + CUT


def test_only_jpeg_shortens_the_longest_prompt_that_the_service_takes() -> None:
    for kind in FORMATS:
        found = web_ui(text_of(encode(IMAGE, replace(PARAMETERS, prompt="🌙" * 20_000), kind)))
        assert ("Shortened" in found) == (kind == "jpeg") and found["Prompt"].startswith("🌙" * 16_000), kind


def test_the_format_is_that_of_the_files_name() -> None:
    names = {"a": "png", "a.png": "png", "a.JPG": "jpeg", "b.c/a.jpeg": "jpeg", "a.webp": "webp"}
    assert {name: format_of(Path(name), "output") for name in names} == names
    for name in ("a.gif", "a.tiff", "a.txt"):
        with pytest.raises(InvalidInput, match="ends in no format") as caught:
            format_of(Path(name), "output")
        assert caught.value.field == "output"
