"""Encodes pictures into files that say how they were made, in the formats and fields that common tools read."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from sfumato.errors import InvalidInput
from sfumato.runtime.infotext import GenerationParameters
from sfumato.types import Image

Format = Literal["png", "jpeg", "webp"]
MIME: Mapping[Format, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
LONGEST_TEXT = 2**20
"""Bytes of the parameters in a file. JPEG holds fewer: `LONGEST_SEGMENT`."""
LONGEST_SEGMENT = 65_533
"""Bytes of a JPEG segment beside its own length (ITU-T T.81, B.1.1.4): all of EXIF has to fit."""

_SUFFIXES: Mapping[str, Format] = {"": "png", ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_EXIF_IFD, _USER_COMMENT, _LONG, _UNDEFINED = 0x8769, 0x9286, 4, 7


def format_of(path: Path, field: str) -> Format:
    """The format of a file to write, by the end of its name; PNG without one.

    Raises:
        InvalidInput: named after ``field``: the name ends in something else.
    """
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise InvalidInput(field, f"{path} ends in no format of pictures.", hint="Name a file that ends in .png, .jpg, .jpeg or .webp.")
    return kind


def encode(image: Image, parameters: GenerationParameters, kind: Format = "png", quality: int = 95) -> bytes:
    """The bytes of the picture's file; equal pictures with equal parameters give equal bytes.

    PNG has the parameters in its text chunk ``parameters`` and the model's version in ``model_version``; JPEG and WebP have the
    parameters in the EXIF field UserComment, as the web UI writes it. Parameters that a format does not hold (JPEG: 64 KB of UTF-16 with
    all of EXIF; PNG and WebP: 1 MB) are shortened, and say so. ``quality`` is 0 to 100, for JPEG and WebP.
    """
    buffer, picture = io.BytesIO(), Pillow.fromarray(image)
    if kind == "png":
        info = PngInfo()
        info.add_text("parameters", parameters.fitted(lambda text: len(text.encode()) <= LONGEST_TEXT))
        if parameters.version:
            info.add_text("model_version", parameters.version)
        picture.save(buffer, format="PNG", pnginfo=info)
    else:
        most = LONGEST_SEGMENT if kind == "jpeg" else LONGEST_TEXT
        exif = user_comment(parameters.fitted(lambda text: len(user_comment(text)) <= most))
        picture.save(buffer, format=kind.upper(), quality=quality, exif=exif)
    return buffer.getvalue()


def user_comment(text: str) -> bytes:
    """An EXIF block with nothing but UserComment: type UNDEFINED, character code UNICODE, UTF-16 in the block's byte order.

    See EXIF 3.0, 4.6.6.4.2; ``piexif``, which the web UI reads and writes with, gives the same fields.
    """
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    first = struct.pack(">HHHIII", 1, _EXIF_IFD, _LONG, 1, 26, 0)
    second = struct.pack(">HHHIII", 1, _USER_COMMENT, _UNDEFINED, len(comment), 44, 0)
    return b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 8) + first + second + comment
