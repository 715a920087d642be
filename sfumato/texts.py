"""Text from outside: files, requests, the command line and model answers, normalised once where it comes in.

Plain ASCII without control characters stays as it is, except for spaces around it. What looks the same becomes the same:

    invisible characters   byte order marks, zero-width spaces, soft hyphens and directional marks are removed (joiners within words and
                           emoji stay)
    spaces                 non-breaking and other Unicode spaces become a space
    line breaks            CRLF and CR become LF
    control characters     become a space, other than tab and LF
    accents                composed (Unicode's form NFC)
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from sfumato.errors import InvalidInput

_INVISIBLE = [0xFEFF, 0x200B, 0x2060, 0x00AD, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_CONTROL = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"]
_SPACES = [0x00A0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
_CHANGED = dict.fromkeys(_INVISIBLE) | dict.fromkeys([*_CONTROL, *_SPACES], " ") | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""The first bytes of UTF-16, and of UTF-32 in one of its orders."""
_HINT = "Save it as UTF-8: iconv -f {} -t UTF-8."


def normalised(text: str) -> str:
    """The text as the module's description says, without spaces around it."""
    if text.isascii() and text.isprintable():
        return text.strip()
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").translate(_CHANGED)).strip()


def same_key(text: str) -> str:
    """A key that is equal for texts that differ in their form and their spaces only."""
    return " ".join(normalised(text).split())


def read_text(path: Path, field: str) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        InvalidInput: named after ``field``: it cannot be read, or is not UTF-8 text.
    """
    try:
        return decoded(path.read_bytes(), field, str(path))
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be read ({error.strerror}).") from error


def decoded(data: bytes, field: str, name: str) -> str:
    """The text of a file's bytes, without a byte order mark; ``name`` is the file's name in errors.

    Raises:
        InvalidInput: named after ``field``: it is not UTF-8 text.
    """
    _refuse_other_encodings(data[:4], field, name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(data.count(b"\n", 0, error.start) + 1, field, name) from error
    if "\0" in text:
        raise InvalidInput(field, f"{name} is not a text file: it has zero bytes.")
    return text


def lines_of(path: Path, field: str) -> Iterator[str]:
    """The normalised lines of a text file, which may be larger than the memory; empty lines and lines that begin with # are left out.

    Raises:
        InvalidInput: named after ``field``: it cannot be read, or is not UTF-8 text.
    """
    number = 0
    try:
        with path.open("rb") as file:
            _refuse_other_encodings(file.read(4), field, str(path))
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise InvalidInput(field, f"{path} is not a text file: line {number} has zero bytes.")
                text = normalised(line)
                if text and not text.startswith("#"):
                    yield text
    except UnicodeDecodeError as error:
        raise _not_utf8(number + 1, field, str(path)) from error
    except OSError as error:
        raise InvalidInput(field, f"{path} cannot be read ({error.strerror}).") from error


def _refuse_other_encodings(head: bytes, field: str, name: str) -> None:
    if head.startswith(_UTF_16) or head == codecs.BOM_UTF32_BE:
        kind = "UTF-32" if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) else "UTF-16"
        raise InvalidInput(field, f"{name} is {kind} text.", hint=_HINT.format(kind))


def _not_utf8(line: int, field: str, name: str) -> InvalidInput:
    """The decoder reads ahead, so that the line is the last one that can be named."""
    return InvalidInput(field, f"{name} is not UTF-8 text (from line {line} on).", hint=_HINT.format("ITS-ENCODING"))
