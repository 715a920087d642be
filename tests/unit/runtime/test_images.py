"""Image files are read, or refused with an error that says what to do."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from sfumato.errors import InvalidInput
from sfumato.runtime import images


def a_picture(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_written_png_reads_back_the_same(tmp_path: Path) -> None:
    images.write_png(a_picture(), tmp_path / "a.png")
    assert np.array_equal(images.read_image(tmp_path / "a.png"), a_picture())
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    Pillow.fromarray(clear).save(tmp_path / "clear.png")
    assert (images.read_image(tmp_path / "clear.png") == 255).all()


def test_a_sixteen_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    Pillow.fromarray(np.full((3, 3), 0x8000, np.uint16)).save(tmp_path / "grey.png")
    assert (images.read_image(tmp_path / "grey.png") == 128).all()


def test_the_camera_orientation_is_applied() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Pillow.fromarray(a_picture(6, 9)).save(buffer, "JPEG", exif=exif)
    assert images.decode_image(buffer.getvalue()).shape == (9, 6, 3)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (5_000, 12_000, 60_000):
        header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        body = chunk(b"IDAT", zlib.compress(b"not the pixels")) + chunk(b"IEND", b"")
        with pytest.raises(InvalidInput, match="16 megapixels"):
            images.decode_image(header + body)


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a" + bytes(40), images.encode_png(a_picture())[:60]])
def test_what_is_no_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(InvalidInput, match="not a readable picture") as caught:
        images.read_image(tmp_path / "x.png", "before")
    assert caught.value.field == "before"


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(InvalidInput, match="20 MB"):
        images.read_image(tmp_path / "huge.png")


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no file"):
        images.read_image(tmp_path / "none.png")
    with pytest.raises(InvalidInput, match="cannot be written"):
        images.write_png(a_picture(), tmp_path / "none" / "a.png")


def test_resizing_changes_only_the_size() -> None:
    flat = np.full((8, 8, 3), 77, np.uint8)
    assert (images.resize(flat, 16, 4) == 77).all() and images.resize(flat, 16, 4).shape == (4, 16, 3)
    assert images.resize(flat, 8, 8) is flat
