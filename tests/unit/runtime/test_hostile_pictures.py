"""Pictures with damaged metadata give their pixels, damaged pictures are refused: several hundred here, ten thousand by `make pictures`."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from sfumato.errors import InvalidInput
from sfumato.runtime import images
from sfumato.runtime.images import decode_cut_out, decode_image, decode_mask
from tests.unit.runtime.hostile_pictures import damaged_file, hostile_picture

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--pictures") or 300)


def test_damaged_metadata_changes_no_pixel(count: int) -> None:
    for seed in range(count):
        made = hostile_picture(seed)
        plain = decode_image(made.plain)
        assert np.array_equal(decode_image(made.file), UPRIGHT[made.orientation](plain)), made.what
        mask = UPRIGHT[made.orientation](decode_mask(made.plain))
        assert np.array_equal(decode_mask(made.file), mask), made.what


def test_a_damaged_file_is_read_or_refused_by_its_field(count: int) -> None:
    refused = 0
    for seed in range(count):
        data = damaged_file(seed)
        for decode in (decode_image, decode_cut_out, decode_mask):
            try:
                found = decode(data, "image")
            except InvalidInput as error:
                assert error.field == "image" and len(str(error)) < 300, seed
                refused += 1
            else:
                pixels = found[0] if isinstance(found, tuple) else found
                assert pixels.dtype == np.uint8 and pixels.size, seed
    assert count / 2 < refused < 2.9 * count  # some of each


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: Sequence[bytes], *more: bytes) -> bytes:
    """A PNG file of unfiltered rows, with more chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    raw = b"".join(b"\0" + row for row in rows)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def saved(picture: Pillow.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_the_example_of_damaged_exif_is_read_upright() -> None:
    """Orientation 6, and XResolution as text: Pillow's own transposition ends in an error, of a kind that depends on its version."""
    picture, exif = Pillow.fromarray(noise()), Pillow.Exif()
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHI", 0x011A, 2, 4) + b"abc\0"
    block = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    file = saved(picture, "JPEG", exif=block)
    exif[0x0112] = 6
    assert np.array_equal(decode_image(file), decode_image(saved(picture, "JPEG", exif=exif)))
    with pytest.raises((TypeError, ValueError)), Pillow.open(io.BytesIO(file)) as opened:
        ImageOps.exif_transpose(opened)


def test_large_profiles_and_texts_are_dropped_unread() -> None:
    picture = Pillow.fromarray(noise())
    for size in (2_000_000, 12_000_000):
        file = saved(picture, "PNG", icc_profile=np.random.default_rng(0).bytes(size))
        assert np.array_equal(decode_image(file), noise()), size
    with pytest.raises(InvalidInput, match="larger than 20 MB"):
        decode_image(saved(picture, "PNG", icc_profile=np.random.default_rng(0).bytes(images.MAX_BYTES)))


BOMBS = """
import io, resource, struct, zlib
from PIL import Image
from sfumato.errors import InvalidInput
from sfumato.runtime.images import decode_cut_out, decode_image
from tests.unit.runtime.test_hostile_pictures import chunk, noise, png, saved

def riff(kind, body):
    return kind + struct.pack("<I", len(body)) + body

zeros = zlib.compressobj(1)
half_a_gigabyte = b"".join(zeros.compress(bytes(2**20)) for _ in range(512)) + zeros.flush()
picture = [row.tobytes() for row in noise()]
readable = [
    png(9, 6, 8, 2, picture, chunk(b"zTXt", b"k\\0\\0" + half_a_gigabyte), chunk(b"iTXt", b"k\\0\\1\\0\\0\\0" + half_a_gigabyte)),
    png(9, 6, 8, 2, picture, chunk(b"iCCP", b"p\\0\\0" + half_a_gigabyte)),
    png(9, 6, 8, 2, picture, *[chunk(b"tEXt", b"k\\0v")] * 50_000),
]
canvas = b"WEBP" + riff(b"VP8X", bytes([2, 0, 0, 0]) + (16383).to_bytes(3, "little") * 2)
refused = [
    png(60_000, 60_000, 8, 2, []),
    png(1, 2**31 - 1, 1, 0, []),
    b"RIFF" + struct.pack("<I", len(canvas)) + canvas,
    b"\\xff\\xd8\\xff\\xc0\\x00\\x11\\x08\\xff\\xff\\xff\\xff\\x03" + bytes(9),
]
for data in (*readable, *refused):  # once, so that what the decoders keep is there
    try:
        decode_image(data[:5000])
    except InvalidInput:
        pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in readable:
    assert (decode_image(data) == noise()).all()
for data in refused:
    for decode in (decode_image, decode_cut_out):
        try:
            decode(data)
        except InvalidInput as error:
            assert "16 megapixels" in str(error), error
        else:
            raise AssertionError(len(data))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs_need_no_more_memory_than_their_files() -> None:
    """Half a gigabyte of zeros in text and profile chunks, and headers of gigapixels: in kilobytes, beyond the files themselves."""
    ended = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 60_000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"hello", "neither PNG, JPEG nor WebP"),
        (b"GIF89a" + bytes(40), "of the kind GIF"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "of the kind HEIC"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "of the kind AVIF"),
        (b'<?xml version="1.0"?><!DOCTYPE svg SYSTEM "file:///etc/passwd"><svg/>', "of the kind XML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "of the kind SVG"),
        (b"II*\0" + bytes(40), "of the kind TIFF"),
        (b"%PDF-1.7", "of the kind PDF"),
        (b"\x89PNG\r\n\x1a\n", "the PNG file has no header"),
        (b"\xff\xd8\xff\xd9", "the JPEG file has no frame"),
        (b"RIFF\4\0\0\0WEBP", "the WebP file has no picture"),
        (saved(Pillow.fromarray(noise()), "PNG")[:-30], "the PNG file is damaged"),
        (saved(Pillow.fromarray(noise(60, 60)), "JPEG")[:-600], "the JPEG file is damaged"),
        (saved(Pillow.fromarray(noise(60, 60)), "WEBP")[:-600], "the WEBP file is damaged"),
        (png(0, 6, 8, 2, []), "the PNG file is damaged"),
        (png(9, 6, 3, 2, []), "the PNG file is damaged"),
    ],
)
def test_what_is_no_picture_is_refused_by_what_it_is(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        decode_image(data)


@pytest.mark.parametrize(("width", "height"), [(1, 201), (100_000, 1), (4000, 3)])
def test_a_line_of_pixels_is_refused(width: int, height: int) -> None:
    with pytest.raises(InvalidInput, match=f"{width} x {height} pixels; the longer side"):
        decode_image(saved(Pillow.new("RGB", (width, height)), "PNG"))
    assert decode_image(saved(Pillow.new("RGB", (200, 1)), "PNG")).shape == (1, 200, 3)


def test_a_file_of_millions_of_empty_parts_is_refused() -> None:
    many = [
        b"\xff\xd8" + b"\xff\xd0" * 100_000,
        b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000,
        png(9, 6, 8, 2, [], *[chunk(b"IDAT", b"")] * 100_000),
        b"RIFF\0\0\0\0WEBP" + b"junk\0\0\0\0" * 100_000,
    ]
    for file in many:
        with pytest.raises(InvalidInput, match="more than 65536 parts"):
            decode_image(file)


def test_a_header_of_no_bits_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the PNG file is damaged"):
        decode_image(png(9, 6, 0, 0, [], chunk(b"tRNS", b"\0\0")))


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_it_is_decoded() -> None:
    """Each scan is a pass over all pixels, however few bytes it has."""
    file = saved(Pillow.fromarray(noise(64, 64)), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    scan, end = file[last:-2], file[-2:]
    assert decode_image(file).shape == (64, 64, 3)
    with pytest.raises(InvalidInput, match="more than 100 scans"):
        decode_image(file[:-2] + scan * 200 + end)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_clear_grey_value_is_clear_at_every_depth(depth: int) -> None:
    most = (1 << depth) - 1
    values = [0, most, most // 2, most]
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))
    file = png(4, 3, depth, 0, [row] * 3, chunk(b"tRNS", struct.pack(">H", most)))
    grey = [0, 255, values[2] * 255 // most if depth < 16 else values[2] >> 8, 255]
    assert decode_image(file)[:, :, 0].tolist() == [grey] * 3  # white where it is clear, and it was white before
    picture, hole = decode_cut_out(file)
    assert hole is not None and hole.tolist() == [[255 if value == most else 0 for value in values]] * 3
    assert decode_mask(file).tolist() == hole.tolist()
    assert picture.tolist() == decode_image(file).tolist()


def test_a_clear_colour_of_sixteen_bits_is_clear() -> None:
    row = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x8000, 0x8000, 0x8000)
    file = png(2, 1, 16, 2, [row], chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)))
    picture, hole = decode_cut_out(file)
    assert hole is not None and hole.tolist() == [[255, 0]] and picture.tolist() == [[[255, 255, 255], [128, 128, 128]]]


@pytest.mark.parametrize("body", [b"", b"\0", bytes(5), bytes(7), bytes(300)])
def test_transparency_that_does_not_fit_is_ignored(body: bytes) -> None:
    file = png(9, 6, 8, 2, [row.tobytes() for row in noise()], chunk(b"tRNS", body))
    assert np.array_equal(decode_image(file), noise()) and decode_cut_out(file)[1] is None


def test_only_the_first_frame_is_read() -> None:
    frames = [Pillow.fromarray(noise()), Pillow.fromarray(255 - noise())]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        file = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(decode_image(file), noise()), kind
    mpo = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_image(mpo), decode_image(saved(frames[0], "JPEG")))


def test_the_colours_of_cmyk_and_of_rgb_without_markers_stay_as_the_encoder_meant_them() -> None:
    flat = Pillow.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode_image(saved(flat, "JPEG")).astype(int) - (255, 0, 0)).max() <= 3
    plain = saved(Pillow.new("RGB", (8, 8), (200, 30, 90)), "JPEG", quality=100)
    assert np.abs(decode_image(plain).astype(int) - (200, 30, 90)).max() <= 3
    kept = saved(Pillow.new("RGB", (8, 8), (200, 30, 90)), "JPEG", quality=100, keep_rgb=True)
    assert np.abs(decode_image(kept).astype(int) - (200, 30, 90)).max() <= 3
