"""What is looked at before it is given out, and what a request becomes."""

from __future__ import annotations

import asyncio
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from services.inference.http.bodies import EditForm
from services.inference.http.errors import RequestRefused
from services.inference.http.images import look_at, start_of
from services.inference.http.schemas import EditRequest, GenerationRequest
from sfumato.diffusion.limits import ModelLimits
from sfumato.errors import InvalidInput
from sfumato.runtime.images import decode_mask, encode_png, read_image
from sfumato.runtime.models import nudenet
from sfumato.types import Image, Start


def portrait() -> Image:
    """Matplotlib's sample picture: Grace Hopper in uniform."""
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    return read_image(Path(spec.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg", "image")


def test_a_picture_in_which_the_detector_finds_what_is_listed_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real detector, with the face that it does see taken for the thing to be held back."""
    detector, sky = nudenet.NudityDetector.load(), np.full((64, 64, 3), (120, 170, 230), np.uint8)
    asyncio.run(look_at([sky, portrait()], detector))
    monkeypatch.setattr(nudenet, "UNSAFE", frozenset({"FACE_FEMALE"}))
    asyncio.run(look_at([sky], detector))
    with pytest.raises(RequestRefused) as caught:
        asyncio.run(look_at([sky, portrait()], detector))
    assert (caught.value.status, caught.value.code) == (400, "moderation_blocked")
    asyncio.run(look_at([portrait()], None))


def test_a_mask_is_where_its_file_is_transparent_or_else_white() -> None:
    white = np.zeros((4, 4, 3), np.uint8)
    white[:2] = 255
    assert np.array_equal(decode_mask(encode_png(white)), white[:, :, 0])
    see_through = np.dstack([white, np.full((4, 4), 255, np.uint8)])
    see_through[:, 3, 3] = 0
    assert np.array_equal(decode_mask(encode_png(see_through)) == 255, see_through[:, :, 3] == 0)


LIMITS = ModelLimits(8, 8, 64, 77, 50, (1.0, 1.0), 4, 64, 20, 1.0)
COLOURS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
HOLE = np.zeros((24, 16), bool)
HOLE[4:10, 2:9] = True


def saved(picture: Pillow.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def with_hole(mode: str) -> bytes:
    """A picture of a mode whose pixels are clear in `HOLE`, and opaque elsewhere."""
    alpha = Pillow.fromarray(np.where(HOLE, np.uint8(0), np.uint8(255)))
    grey = np.where(HOLE, np.uint8(7), np.maximum(COLOURS[:, :, 0], 8))
    match mode:
        case "RGBA" | "WebP":
            picture = Pillow.fromarray(COLOURS)
            picture.putalpha(alpha)
            return saved(picture) if mode == "RGBA" else saved(picture, "WEBP", lossless=True, exact=True)
        case "LA":
            return saved(Pillow.merge("LA", [Pillow.fromarray(grey), alpha]))
        case "grey with a clear value":
            return saved(Pillow.fromarray(grey), transparency=7)
        case "colour with a clear value":
            return saved(Pillow.fromarray(np.where(HOLE[..., None], np.uint8(1), COLOURS | 2)), transparency=(1, 1, 1))
        case "sixteen bits with a clear value":
            return saved(Pillow.fromarray(grey.astype(np.uint16) * 257), transparency=7 * 257)
        case _:
            picture = Pillow.fromarray(np.where(HOLE, np.uint8(3), COLOURS[:, :, 0] % 3)).convert("P")
            picture.putpalette(bytes(range(12)))
            return saved(picture, transparency=3 if mode == "palette with a clear index" else b"\xff\xff\xff\0")


CLEAR = (
    "RGBA",
    "WebP",
    "LA",
    "grey with a clear value",
    "colour with a clear value",
    "sixteen bits with a clear value",
    "palette with a clear index",
    "palette with alpha",
)


def start(image: bytes, mask: bytes | None = None, **fields: object) -> Start:
    return start_of(EditForm(EditRequest.model_validate({"prompt": "x", **fields}), image, mask), LIMITS)


@pytest.mark.parametrize("mode", CLEAR)
def test_a_hole_in_the_picture_is_its_mask_and_is_painted_from_nothing(mode: str) -> None:
    made = start(with_hole(mode))
    assert made.mask is not None and np.array_equal(made.mask, np.where(HOLE, 255, 0)) and made.strength == 1.0
    assert (made.image[HOLE] == 255).all() and not (made.image[~HOLE] == 255).all()
    assert start(with_hole(mode), strength=0.5).strength == 0.5


@pytest.mark.parametrize("mode", CLEAR)
def test_a_mask_is_where_its_file_is_clear_whatever_its_kind(mode: str) -> None:
    made = start(encode_png(COLOURS), with_hole(mode))
    assert made.mask is not None and np.array_equal(made.mask, np.where(HOLE, 255, 0))
    assert made.strength == 0.8 and np.array_equal(made.image, COLOURS)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "LA", "RGBA", "CMYK"])
def test_a_mask_in_which_nothing_is_clear_is_where_it_is_white(mode: str) -> None:
    white = Pillow.fromarray(np.where(HOLE, np.uint8(255), np.uint8(0))).convert("RGB").convert(mode)
    made = start(encode_png(COLOURS), saved(white, "JPEG", quality=100, subsampling=0) if mode == "CMYK" else saved(white))
    assert made.mask is not None and np.array_equal(made.mask, np.where(HOLE, 255, 0)), mode


def test_a_mask_goes_before_the_hole_and_both_lie_upright() -> None:
    other = np.zeros((24, 16, 3), np.uint8)
    other[20:] = 255
    made = start(with_hole("RGBA"), encode_png(other))
    assert made.mask is not None and np.array_equal(made.mask, other[:, :, 0]) and made.strength == 0.8
    exif, picture = Pillow.Exif(), Pillow.open(io.BytesIO(with_hole("RGBA")))
    exif[0x0112] = 6
    turned = start(saved(picture, exif=exif))
    assert turned.mask is not None and np.array_equal(turned.mask, np.rot90(np.where(HOLE, 255, 0), -1))


def test_what_is_opaque_or_only_half_clear_has_no_hole() -> None:
    for alpha in (255, 200, 1):
        picture = Pillow.fromarray(COLOURS)
        picture.putalpha(alpha)
        made = start(saved(picture))
        assert (made.mask, made.strength) == (None, 0.8)
        assert start(saved(picture), input_fidelity="high").strength == 0.4


def test_a_picture_that_is_clear_everywhere_is_painted_whole() -> None:
    picture = Pillow.fromarray(COLOURS)
    picture.putalpha(0)
    made = start(saved(picture))
    assert made.mask is not None and made.mask.all() and made.strength == 1.0


def test_a_hole_follows_the_size_and_one_of_less_than_a_pixel_is_none() -> None:
    made = start(with_hole("RGBA"), size="32x48")
    assert made.mask is not None and made.mask.shape == (48, 32)
    assert np.array_equal(made.mask[9:19, 5:17], np.full((10, 12), 255, np.uint8)) and not made.mask[:7].any()
    picture = np.dstack([np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 255, np.uint8)])
    picture[5, 5, 3] = 0
    assert start(saved(Pillow.fromarray(picture)), size="8x8").mask is None


@pytest.mark.parametrize("mask", [encode_png(np.zeros((16, 24, 3), np.uint8)), encode_png(np.zeros((1, 1, 3), np.uint8)), b"", b"GIF89a"])
def test_a_mask_of_another_size_or_kind_is_refused_by_its_name(mask: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        start(encode_png(COLOURS), mask)
    assert caught.value.field == "mask"


@pytest.mark.parametrize("image", [b"", b"\0\0\0\x18ftypheic", b"<svg/>", b"RIFF\4\0\0\0WEBP"])
def test_an_image_of_another_kind_is_refused_by_its_name(image: bytes) -> None:
    with pytest.raises(InvalidInput, match="not a readable picture") as caught:
        start(image)
    assert caught.value.field == "image"


def test_steps_and_distance_are_what_is_said_before_what_is_meant() -> None:
    def steps(**fields: object) -> int:
        return GenerationRequest.model_validate({"prompt": "x", **fields}).steps(20, 50)

    assert [steps(), steps(quality="low"), steps(quality="max"), steps(quality="max", num_inference_steps=3)] == [20, 10, 40, 3]
    edits = [{}, {"input_fidelity": "high"}, {"input_fidelity": "high", "strength": 0.9}]
    assert [EditRequest.model_validate({"prompt": "x", **each}).distance() for each in edits] == [0.8, 0.4, 0.9]
