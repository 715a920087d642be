"""Images from and to files. A user's file is checked by its header before its pixels are decoded."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from sfumato.errors import InvalidInput
from sfumato.runtime.files import write_whole
from sfumato.types import Image

MAX_BYTES = 20_000_000
MAX_PIXELS = 16_000_000
FORMATS = ("PNG", "JPEG", "WEBP")


def read_image(path: Path | str, field: str = "image") -> Image:
    """The picture in a PNG, JPEG or WebP file, ``[height, width, 3]``; see `decode_image`.

    Raises:
        InvalidInput: named after ``field``: no such file, not a picture, damaged, over 20 MB or over 16 megapixels.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInput(field, f"there is no file {path}.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be read ({error.strerror}).") from error
    return decode_image(data, field, name=str(path))


def decode_image(data: bytes, field: str = "image", *, name: str = "the image") -> Image:
    """The picture in the bytes of a PNG, JPEG or WebP file, upright, transparency over white, first frame only.

    Raises:
        InvalidInput: named after ``field``: not a picture, damaged, over 20 MB or over 16 megapixels.
    """
    return _decoded(data, field, name, lambda picture: np.array(_rgb(picture)))


def decode_mask(data: bytes, field: str = "mask", *, name: str = "the mask") -> Image:
    """The region of an image to paint again, ``[height, width]``: 255 inside, 0 outside.

    It is where the file is transparent (OpenAI's convention), or where a file without transparency is white (diffusers' convention).

    Raises:
        InvalidInput: as `decode_image`.
    """

    def masked(picture: Pillow.Image) -> Image:
        if picture.has_transparency_data:
            return 255 - np.array(picture.convert("RGBA").getchannel("A"))
        return np.array(_rgb(picture).convert("L"))

    return _decoded(data, field, name, masked)


def _decoded(data: bytes, field: str, name: str, pixels: Callable[[Pillow.Image], Image]) -> Image:
    """``pixels`` of the decoded, upright image, after its header was checked."""
    if len(data) > MAX_BYTES:
        raise InvalidInput(field, f"{name} is larger than {MAX_BYTES // 1_000_000} MB.", hint="Use a smaller file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise _too_many_pixels(field, name, f"{width} x {height} pixels")
                return pixels(ImageOps.exif_transpose(picture))
    except (Pillow.DecompressionBombWarning, Pillow.DecompressionBombError):
        raise _too_many_pixels(field, name, "far too large") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise InvalidInput(field, f"{name} is not a readable picture.", hint="Use a PNG, JPEG or WebP file.") from error


def encode_png(image: Image) -> bytes:
    """The bytes of a PNG file of the picture; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_png(image: Image, path: Path | str, field: str = "out") -> None:
    """Write the picture as PNG; a reader never sees a part of the file.

    Raises:
        InvalidInput: named after ``field``: the folder does not exist or cannot be written.
    """
    try:
        write_whole(Path(path), encode_png(image))
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be written ({error.strerror}).", hint="Name a file in a folder that exists.") from error


def resize(image: Image, width: int, height: int) -> Image:
    """The image in another size, bicubic with antialiasing; the same array if it has this size."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BICUBIC))


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    """RGB with eight bits per channel: 16-bit grey is scaled, transparency is blended over white."""
    if picture.mode.startswith("I"):
        return Pillow.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def _too_many_pixels(field: str, name: str, what: str) -> InvalidInput:
    return InvalidInput(field, f"{name} is {what}; the limit is {MAX_PIXELS // 1_000_000} megapixels.", hint="Scale it down first.")
