"""Images from and to files. A user's file is checked by its header before its pixels are decoded."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from sfumato.errors import InvalidInput
from sfumato.runtime.files import write_whole
from sfumato.runtime.image_containers import NoPixels, pixel_data
from sfumato.types import Image

MAX_BYTES = 20_000_000
MAX_PIXELS = 16_000_000
MAX_RATIO = 200
"""Of the longer side to the shorter: models scale pictures by their shorter side, and a line of pixels would become gigabytes."""

_TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
"""How a picture of an EXIF orientation is set upright."""


def read_image(path: Path | str, field: str = "image") -> Image:
    """The picture in a PNG, JPEG or WebP file, ``[height, width, 3]``; see `decode_image`.

    Raises:
        InvalidInput: named after ``field``: no such file, not a picture, damaged, or too large (`MAX_BYTES`, `MAX_PIXELS`, `MAX_RATIO`).
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
    """The picture in the bytes of a PNG, JPEG or WebP file: upright, transparency over white, first frame only, without colour management.

    Of the file's metadata only EXIF's Orientation is read; the rest is dropped unread (`image_containers`), however large or damaged.

    Raises:
        InvalidInput: named after ``field``: not a picture, damaged, or too large (`MAX_BYTES`, `MAX_PIXELS`, `MAX_RATIO`).
    """
    return _over_white(_decoded(data, field, name))


def decode_cut_out(data: bytes, field: str = "image", *, name: str = "the image") -> tuple[Image, Image | None]:
    """As `decode_image`, and the hole in the picture: ``[height, width]``, 255 where it is more transparent than not, 0 elsewhere.

    The hole is None when no pixel is fully transparent.

    Raises:
        InvalidInput: as `decode_image`.
    """
    picture = _decoded(data, field, name)
    alpha = _alpha(picture)
    hole = None if alpha is None or alpha.min() > 0 else np.where(alpha < 128, np.uint8(255), np.uint8(0))
    return _over_white(picture), hole


def decode_mask(data: bytes, field: str = "mask", *, name: str = "the mask") -> Image:
    """The region of an image to paint again, ``[height, width]``: 255 inside, 0 outside.

    It is where the file is transparent (OpenAI's convention), or where a file without a transparent pixel is white (diffusers' convention).

    Raises:
        InvalidInput: as `decode_image`.
    """
    picture = _decoded(data, field, name)
    alpha = _alpha(picture)
    return 255 - alpha if alpha is not None else np.array(_eight_bits(picture).convert("RGB").convert("L"))


def _decoded(data: bytes, field: str, name: str) -> Pillow.Image:
    """The decoded, upright picture, in any of Pillow's modes, after its header was checked."""
    if len(data) > MAX_BYTES:
        raise InvalidInput(field, f"{name} is larger than {MAX_BYTES // 1_000_000} MB.", hint="Use a smaller file.")
    try:
        file = pixel_data(data)
    except NoPixels as error:
        raise _unreadable(field, name, str(error)) from error
    width, height = file.size
    if width * height > MAX_PIXELS:
        message = f"{name} is {width} x {height} pixels; the limit is {MAX_PIXELS // 1_000_000} megapixels."
        raise InvalidInput(field, message, hint="Scale it down first.")
    if max(file.size) > MAX_RATIO * min(file.size) > 0:
        raise InvalidInput(field, f"{name} is {width} x {height} pixels; the longer side may be {MAX_RATIO} times the shorter.")
    try:
        with Pillow.open(io.BytesIO(file.data), formats=[file.kind]) as picture:
            if picture.size != file.size:
                raise _unreadable(field, name, "its headers name different sizes")
            picture.load()
            turn = _TURNS.get(file.orientation)
            return picture.copy() if turn is None else picture.transpose(turn)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise _unreadable(field, name, f"the {file.kind} file is damaged, or of a kind that is not supported") from error


def encode_png(image: Image) -> bytes:
    """The bytes of a PNG file of the picture; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_png(image: Image, path: Path | str, field: str = "out") -> None:
    """Write the picture as PNG; a reader never sees a part of the file.

    Raises:
        InvalidInput: named after ``field``: the folder does not exist or cannot be written, or the name ends in another format.
    """
    if Path(path).suffix.lower() not in ("", ".png"):
        raise InvalidInput(field, f"{path} would be a PNG file under the name of another kind.", hint="Name a file that ends in .png.")
    try:
        write_whole(Path(path), encode_png(image))
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be written ({error.strerror}).", hint="Name a file in a folder that exists.") from error


def resize(image: Image, width: int, height: int) -> Image:
    """The image in another size, bicubic with antialiasing; the same array if it has this size."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BICUBIC))


def _over_white(picture: Pillow.Image) -> Image:
    """``[height, width, 3]``: transparency is blended over white."""
    alpha, colours = _alpha(picture), _eight_bits(picture).convert("RGB")
    if alpha is not None:
        colours.putalpha(Pillow.fromarray(alpha))
        colours = Pillow.alpha_composite(Pillow.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return np.array(colours)


def _alpha(picture: Pillow.Image) -> Image | None:
    """The opacity ``[height, width]``, 0 to 255; None where all pixels are opaque."""
    if not picture.has_transparency_data:
        return None
    if picture.mode.startswith("I"):
        alpha = np.where(np.asarray(picture) == picture.info["transparency"], np.uint8(0), np.uint8(255))
    else:
        alpha = np.array(picture.convert("RGBA").getchannel("A"))
    return None if alpha.min() == 255 else alpha


def _eight_bits(picture: Pillow.Image) -> Pillow.Image:
    """The picture with eight bits a channel and without its transparency: 16-bit grey is scaled."""
    if picture.mode.startswith("I"):
        return Pillow.fromarray((np.asarray(picture).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    return picture.convert("RGBA") if picture.has_transparency_data else picture


def _unreadable(field: str, name: str, why: str) -> InvalidInput:
    return InvalidInput(field, f"{name} is not a readable picture: {why}.", hint="Use a PNG, JPEG or WebP file.")
