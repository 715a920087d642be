"""PNG, JPEG and WebP files reduced to what their pixels need, so that no damaged or oversized metadata reaches the decoder.

What stays: PNG (third edition, W3C 2025): IHDR, PLTE, tRNS, IDAT, IEND. JPEG (ITU-T T.81, JFIF, Adobe): tables, frame, scans, and the
two markers that name the colour space. WebP (RFC 9649): VP8X, ALPH, VP8, VP8L, ANIM, ANMF. What is dropped unread: colour profiles,
EXIF, XMP, text, thumbnails, animation control, and whatever is unknown. The one field that is read is EXIF's Orientation.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["PNG", "JPEG", "WEBP"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SCANS = 100
"""Scans of a JPEG file: each is a pass over the whole picture; encoders write fewer than 20."""

MAX_PARTS = 2**16
"""Chunks or segments of a file: a file of 20 MB could have millions of empty ones, and each takes time."""

_ORIENTATION, _SHORT, _LONG = 0x0112, 3, 4
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_WEBP_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_ALPHA_AND_ANIMATION = 0x12
_OTHER_KINDS = (
    (0, b"GIF8", "GIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypavif", "AVIF"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"BM", "BMP"),
    (0, b"\0\0\x01\0", "ICO"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"),
    (0, b"<!DOCTYPE", "HTML"),
)


@dataclass(frozen=True, slots=True)
class PixelData:
    """A file without its metadata: ``size`` is (width, height) in pixels by its header, ``orientation`` is EXIF's, 1 to 8."""

    kind: Kind
    data: bytes
    size: tuple[int, int]
    orientation: int


class NoPixels(ValueError):
    """Why the bytes are no PNG, JPEG or WebP file with a picture in it; the message continues "the image is not readable: "."""


def pixel_data(data: bytes) -> PixelData:
    """The file without its metadata.

    Raises:
        NoPixels: the bytes are of another kind, or end before the picture's size.
    """
    if data.startswith(PNG_SIGNATURE):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if not data:
        raise NoPixels("it is empty")
    kind = next((kind for start, magic, kind in _OTHER_KINDS if data.startswith(magic, start)), None)
    raise NoPixels("it is neither PNG, JPEG nor WebP" if kind is None else f"it is a file of the kind {kind}")


def orientation_of(exif: bytes) -> int:
    """The Orientation, 1 to 8, of an EXIF block (EXIF 3.0, 4.6.5.1.6); 1 where it is absent or the block is damaged before it.

    Nothing else of the block is read: entries of a wrong type or beyond its end have no effect.
    """
    block = exif.removeprefix(b"Exif\0\0")
    order = _BYTE_ORDERS.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (entries,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", block, entry)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == _LONG else "H"), block, entry + 8)
                return value if kind in (_SHORT, _LONG) and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _parts(kind: str) -> Iterator[int]:
    """Counts the parts of a file. Raises NoPixels: it has more than `MAX_PARTS`."""
    yield from range(MAX_PARTS)
    raise NoPixels(f"the {kind} file has more than {MAX_PARTS} parts")


def _png(data: bytes) -> PixelData:
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise NoPixels("the PNG file has no header")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    kept, orientation, at = [PNG_SIGNATURE], 1, len(PNG_SIGNATURE)
    for _ in _parts("PNG"):
        if at + 12 > len(data):
            break
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(data[at:end])
        elif kind in (b"tRNS", b"eXIf") and end <= len(data):
            body, (checksum,) = data[at + 8 : end - 4], struct.unpack_from(">I", data, end - 4)
            if kind == b"eXIf":
                orientation = orientation_of(body)
            elif checksum == zlib.crc32(kind + body) and (body := _transparency(body, depth, colour)):
                kept.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
        if kind == b"IEND":
            break
        at = end
    return PixelData("PNG", b"".join(kept), (width, height), orientation)


def _transparency(body: bytes, depth: int, colour: int) -> bytes:
    """The chunk tRNS for a decoder that compares pixels after it brought them to 8 bits (16-bit grey: as they are); empty if unusable.

    A chunk that does not fit the colour type is ignored, as libpng does.
    """
    if colour == 3:
        return body[:256]
    channels = {0: 1, 2: 3}.get(colour)
    if channels is None or len(body) != 2 * channels:
        return b""
    samples = [sample & ((1 << depth) - 1) for sample in struct.unpack(f">{channels}H", body)]
    if depth == 16 and colour == 2:
        samples = [sample >> 8 for sample in samples]
    elif depth in (1, 2, 4):
        samples = [sample * 255 // ((1 << depth) - 1) for sample in samples]
    return struct.pack(f">{channels}H", *samples)


def _jpeg(data: bytes) -> PixelData:
    kept, size, orientation, at = [b"\xff\xd8"], None, None, 2
    for _ in _parts("JPEG"):
        found = _MARKER.search(data, at)  # fill bytes and bytes that a wrong length leaves over are skipped, as libjpeg does
        if found is None or found.start() + 4 > len(data):
            break
        at, marker = found.start(), data[found.start() + 1]
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        if marker in (0xDA, 0xD9):
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            if marker == 0xE1 and orientation is None and body.startswith(b"Exif\0\0"):
                orientation = orientation_of(body)
            kept.append(_colour_space(marker, body))
        else:
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 5:
                height, width = struct.unpack_from(">HH", body, 1)
                size = width, height
            kept.append(data[at : at + 2 + length])
        at += 2 + max(2, length)
    if size is None:
        raise NoPixels("the JPEG file has no frame")
    kept.append(data[at:])
    stripped = b"".join(kept)
    if stripped.count(b"\xff\xda") > MAX_SCANS:
        raise NoPixels(f"the JPEG file has more than {MAX_SCANS} scans")
    return PixelData("JPEG", stripped, size, orientation or 1)


def _colour_space(marker: int, body: bytes) -> bytes:
    """The segment that names the colour space, whole and without its other fields; empty for any other segment."""
    if marker == 0xE0 and body.startswith(b"JFIF\0"):
        return b"\xff\xe0\x00\x10JFIF\0\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    if marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
        return b"\xff\xee\x00\x0e" + body[:12]
    return b""


def _webp(data: bytes) -> PixelData:
    kept, size, orientation, at = [], None, 1, 12
    for _ in _parts("WebP"):
        if at + 8 > len(data):
            break
        kind, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        body = data[at + 8 : at + 8 + length]
        if kind in _WEBP_PIXELS:
            if kind == b"VP8X" and body:
                body = bytes([body[0] & _WEBP_ALPHA_AND_ANIMATION]) + body[1:]
            size = size or _webp_size(kind, body)
            kept.append(kind + struct.pack("<I", length) + body + b"\0" * (len(body) % 2))
        elif kind == b"EXIF":
            orientation = orientation_of(body)
        at += 8 + length + length % 2
    if size is None:
        raise NoPixels("the WebP file has no picture")
    chunks = b"".join(kept)
    return PixelData("WEBP", b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks, size, orientation)


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    if kind == b"VP8X" and len(body) >= 10:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None
