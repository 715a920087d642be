"""Makes picture files whose pixels are good and whose metadata is damaged, oversized or hostile, and damages files at random places."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "palette with alpha", "grey with a clear value", "colour with a clear value"),
    "JPEG": ("L", "RGB", "CMYK", "progressive"),
    "WEBP": ("RGB", "RGBA", "lossless", "animated"),
}


@dataclass(frozen=True)
class HostilePicture:
    """A file with damaged metadata, the same file without any, and the EXIF orientation that the damaged one states legibly."""

    what: str
    file: bytes
    plain: bytes
    orientation: int = 1


def hostile_picture(seed: int) -> HostilePicture:
    """The picture of a seed."""
    rng = random.Random(seed)
    container = rng.choice(list(MODES))
    mode = rng.choice(MODES[container])
    plain = picture_file(rng, container, mode)
    exif, orientation = exif_block(rng) if rng.random() < 0.6 else (None, 1)
    pieces = [_PIECE[container](rng) for _ in range(rng.randrange(1, 5))]
    rng.shuffle(pieces)
    file = _INSERT[container](rng, plain, exif, pieces)
    return HostilePicture(f"{container} {mode}, seed {seed}", file, plain, orientation)


def damaged_file(seed: int) -> bytes:
    """A picture with bytes changed, removed, inserted or repeated anywhere, or cut off."""
    rng = random.Random(~seed)
    data = bytearray(hostile_picture(seed).file if rng.random() < 0.5 else hostile_picture(seed).plain)
    for _ in range(rng.randrange(1, 12)):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 120))
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                data[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)))
            case 3:
                del data[at : at + rng.randrange(1, 40)]
            case 4:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
            case _:
                data[at:at] = data[at : at + rng.randrange(1, 200)]
        if not data:
            return b""
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.25 else data)


def picture_file(rng: random.Random, container: str, mode: str) -> bytes:
    """A small picture of random pixels, without metadata."""
    height, width = rng.choice(((1, 1), (1, 7), (9, 1), (6, 9), (17, 16), (33, 40)))
    pixels = np.random.default_rng(rng.getrandbits(32))

    def samples(*channels: int) -> np.ndarray:
        return pixels.integers(0, 256, (height, width, *channels), dtype=np.uint8)

    options: dict[str, object] = {}
    match mode:
        case "1":
            picture = Pillow.fromarray(samples()).convert("1")
        case "I;16":
            picture = Pillow.fromarray(pixels.integers(0, 2**16, (height, width), dtype=np.uint16))
        case "LA" | "RGBA" | "CMYK":
            picture = Pillow.frombytes(mode, (width, height), samples(len(mode)).tobytes())
        case "P" | "palette with alpha":
            picture = Pillow.fromarray(samples() % 16).convert("P")
            picture.putpalette(rng.randbytes(48))
            options = {"transparency": rng.randbytes(16)} if mode != "P" else {}
        case "grey with a clear value":
            picture = Pillow.fromarray(samples())
            options = {"transparency": rng.randrange(256)}
        case "colour with a clear value":
            picture = Pillow.fromarray(samples(3))
            options = {"transparency": picture.getpixel((0, 0))}
        case "L":
            picture = Pillow.fromarray(samples())
        case "animated":
            picture = Pillow.fromarray(samples(3))
            options = {"save_all": True, "append_images": [Pillow.fromarray(samples(3))], "duration": 50}
        case _:
            picture = Pillow.fromarray(samples(3))
            options = {"progressive": True} if mode == "progressive" else {"lossless": True} if mode == "lossless" else {}
    buffer = io.BytesIO()
    picture.save(buffer, container, **options)
    return buffer.getvalue()


def exif_block(rng: random.Random) -> tuple[bytes, int]:
    """An EXIF block as in a PNG file, damaged, and the orientation that is legible in it."""
    order, mark = rng.choice(((">", b"MM\0*"), ("<", b"II*\0")))
    orientation = rng.randrange(1, 9)
    entries: list[bytes] = [struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, rng.choice((0, 0, 7)))]
    for _ in range(rng.randrange(8)):
        tag = rng.choice((0x010F, 0x011A, 0x011B, 0x0128, 0x0132, 0x8298, 0x8769, 0x8825, 0xA005, 0x9286, 0xC4A5, rng.randrange(2**16)))
        if tag != 0x0112:
            size, value = rng.choice((0, 1, 4, 5, 65535, 2**31, 2**32 - 1)), rng.choice((0, 8, 26, 2**32 - 1, rng.getrandbits(32)))
            entries.append(struct.pack(f"{order}HHII", tag, rng.randrange(16), size, value))
    rng.shuffle(entries)
    count = rng.choice((len(entries), len(entries), 65535))
    following = struct.pack(f"{order}I", rng.choice((0, 8, 2**32 - 1))) + rng.randbytes(rng.randrange(60))
    block = mark + struct.pack(f"{order}IH", 8, count) + b"".join(entries) + following
    match rng.randrange(8):
        case 0:
            return rng.randbytes(4) + block[4:], 1
        case 1:
            return mark + struct.pack(f"{order}I", rng.choice((2**31, 2**32 - 1, len(block)))) + block[8:], 1
        case 2:
            return b"", 1
        case 3:
            return rng.randbytes(rng.randrange(200)).replace(mark, b"none"), 1
        case 4:
            return block.replace(struct.pack(f"{order}HHIH", 0x0112, 3, 1, orientation), struct.pack(f"{order}HHIH", 0x0112, 3, 1, 9)), 1
        case _:
            return block, orientation


def colour_profile(rng: random.Random) -> bytes:
    """What is no colour profile, or starts as one; at times of 2 MB."""
    size = rng.choice((0, 1, 127, 128, 4000, 2_000_000 if rng.random() < 0.2 else 5000))
    body = rng.randbytes(min(size, 4000)) * (size // 4000 + 1)
    return (struct.pack(">I", len(body)) + b"lcms\x04\x00\x00\x00mntrRGB XYZ " if rng.random() < 0.5 else b"") + body[:size]


def xmp(rng: random.Random) -> bytes:
    """XMP that is no XML, names another orientation, or grows when its entities are resolved."""
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 9))
    return rng.choice(
        (
            b"",
            b"<x:xmpmeta",
            rng.randbytes(300),
            b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>',
            f'<!DOCTYPE x [<!ENTITY a0 "a">{entities}]><x>&a8;</x>'.encode(),
            "<x>\ud7ff\0</x>".encode("utf-16"),
        )
    )


def _chunk(kind: bytes, body: bytes, rng: random.Random | None = None) -> bytes:
    """A PNG chunk; with ``rng`` now and then with a wrong checksum."""
    checksum = zlib.crc32(kind + body)
    if rng is not None and rng.random() < 0.2:
        checksum ^= 1 << rng.randrange(32)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def _png_piece(rng: random.Random) -> bytes:
    key = rng.choice((b"Comment", b"parameters", b"", b"k" * 200, b"\xff\xfe", b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp"))
    packed = zlib.compress(rng.choice((b"", b"text" * 10, bytes(3_000_000), "\xff".encode("utf-16"))))
    method = bytes([rng.choice((0, 0, 1, 255))])
    match rng.randrange(9):
        case 0:
            return _chunk(b"iCCP", b"profile\0" + method + zlib.compress(colour_profile(rng)), rng)
        case 1:
            return _chunk(b"iCCP", rng.randbytes(rng.randrange(30)), rng)
        case 2:
            return _chunk(b"tEXt", key + rng.choice((b"", b"\0", b"\0" + rng.randbytes(50))), rng)
        case 3:
            return _chunk(b"zTXt", key + b"\0" + method + rng.choice((packed, packed[:-3], b"")), rng)
        case 4:
            head = key + b"\0" + rng.choice((b"\0\0", b"\1\0", b"\1\5", b"\7\0")) + b"de\0" + rng.choice((b"\0", b"\xff\0", b""))
            return _chunk(b"iTXt", head + rng.choice((packed, xmp(rng))), rng)
        case 5:
            return _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(rng), rng)
        case 6:
            kind = rng.choice((b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"bKGD", b"hIST", b"sPLT", b"tIME", b"sBIT", b"cICP", b"mDCV"))
            return _chunk(kind, rng.randbytes(rng.randrange(40)), rng)
        case 7:
            return _chunk(rng.choice((b"acTL", b"fcTL", b"fdAT")), rng.randbytes(rng.randrange(40)), rng)
        case _:
            return _chunk(rng.choice((b"prVt", b"quIz", b"abCd")), rng.randbytes(rng.randrange(100)), rng)


def _into_png(rng: random.Random, plain: bytes, exif: bytes | None, pieces: list[bytes]) -> bytes:
    """With the pieces after the header, before the end, or between."""
    if exif is not None:
        pieces = [*pieces, _chunk(b"eXIf", exif)]
    early, late = plain[:33], plain[33:-12]
    cut = rng.randrange(len(pieces) + 1)
    return early + b"".join(pieces[:cut]) + late + b"".join(pieces[cut:]) + plain[-12:]


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", min(len(body), 65533) + 2) + body[:65533]


def _jpeg_piece(rng: random.Random) -> bytes:
    match rng.randrange(10):
        case 0:
            return _segment(0xE2, b"ICC_PROFILE\0" + bytes([rng.randrange(4), rng.randrange(4)]) + colour_profile(rng))
        case 1:
            return _segment(0xE2, b"MPF\0" + rng.choice((b"", rng.randbytes(60), b"MM\0*" + struct.pack(">I", 8) + rng.randbytes(40))))
        case 2:
            return _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(rng))
        case 3:
            return _segment(0xED, b"Photoshop 3.0\0" + rng.choice((b"", b"8BIM", b"8BIM\x04\x04\xff\0\0\0\0", rng.randbytes(40))))
        case 4:
            return _segment(0xEE, b"Adobe" + rng.randbytes(rng.randrange(7)))
        case 5:
            return _segment(0xE0, rng.choice((b"JFIF\0", b"JFIF\0\1", b"JFIF", b"JFXX\0\x10" + rng.randbytes(30))))
        case 6:
            return _segment(0xFE, rng.randbytes(rng.randrange(400)))
        case 7:
            return b"\xff" * rng.randrange(1, 9) + _segment(0xFE, b"after fill bytes")
        case 8:
            return _segment(0xE0 + rng.randrange(2, 14), rng.randbytes(rng.randrange(300)))
        case _:
            return _segment(0xFE, b"too short")[:-2] + b"junk that its length leaves over"


def _into_jpeg(rng: random.Random, plain: bytes, exif: bytes | None, pieces: list[bytes]) -> bytes:
    """With the pieces at the beginning, and EXIF before or behind them."""
    if exif is not None:
        pieces.insert(rng.randrange(len(pieces) + 1), _segment(0xE1, b"Exif\0\0" + exif))
    return plain[:2] + b"".join(pieces) + plain[2:]


def _riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _webp_piece(rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return _riff(b"ICCP", colour_profile(rng))
        case 1:
            return _riff(b"XMP ", xmp(rng))
        case 2:
            return _riff(rng.choice((b"junk", b"\0\0\0\0", b"LIST")), rng.randbytes(rng.randrange(50)))
        case _:
            return _riff(b"ICCP", rng.randbytes(rng.randrange(20)))


def _into_webp(rng: random.Random, plain: bytes, exif: bytes | None, pieces: list[bytes]) -> bytes:
    """With the pieces behind the pixels, and with flags for metadata whether or not they are there."""
    body = bytearray(plain[12:])
    if body[:4] == b"VP8X":
        body[8] |= rng.choice((0x00, 0x08, 0x04, 0x20, 0x2C))
    if exif is not None:
        pieces.insert(rng.randrange(len(pieces) + 1), _riff(b"EXIF", rng.choice((b"", b"Exif\0\0")) + exif))
    whole = bytes(body) + b"".join(pieces)
    return b"RIFF" + struct.pack("<I", 4 + len(whole)) + b"WEBP" + whole


_PIECE: dict[str, Callable[[random.Random], bytes]] = {"PNG": _png_piece, "JPEG": _jpeg_piece, "WEBP": _webp_piece}
_INSERT: dict[str, Callable[[random.Random, bytes, bytes | None, list[bytes]], bytes]] = {
    "PNG": _into_png,
    "JPEG": _into_jpeg,
    "WEBP": _into_webp,
}
