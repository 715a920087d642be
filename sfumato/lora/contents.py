"""The raw content of an adapter's file and every check that needs no model. PyTorch is not needed.

All readers start here: the command line, the generator, inference, the trainer, the export and the registry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from sfumato.errors import BrokenWeights, MissingWeights

MAX_BYTES = 8 << 30

# The one key of the header's free text. Several keys would be written in the order of a hash map, another in every process.
METADATA = "sfumato"

# The dtypes that factors may have, by safetensors' names: the unsigned integer of each number's bits, the sign's bit cleared by the first
# mask, and the bits at and above which a number is not finite (float8_e4m3fn has no infinity, and one NaN).
FLOATS: Mapping[str, tuple[str, int, int]] = {
    "F64": ("<u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F8_E4M3": ("|u1", 0x7F, 0x7F),
    "F8_E5M2": ("|u1", 0x7F, 0x7C),
}
# The dtypes that an alpha may have besides, by NumPy's names.
INTEGERS = {"I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One tensor as it lies in the file: safetensors' name of the dtype, the shape, and little-endian numbers."""

    dtype: str
    shape: tuple[int, ...]
    data: bytearray

    @property
    def finite(self) -> bool:
        """Whether all numbers are finite; the dtype must be one of `FLOATS`."""
        kind, unsigned, limit = FLOATS[self.dtype]
        bits = np.frombuffer(self.data, dtype=kind)
        return not bool(((bits & bits.dtype.type(unsigned)) >= bits.dtype.type(limit)).any())

    @property
    def zero(self) -> bool:
        """Whether every number is 0; the dtype must be one of `FLOATS`."""
        kind, unsigned, _ = FLOATS[self.dtype]
        bits = np.frombuffer(self.data, dtype=kind)
        return not bool((bits & bits.dtype.type(unsigned)).any())


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """A file's tensors by key, our own metadata, and the header's free text unchanged."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    header: Mapping[str, str]


def read_contents(path: Path) -> Contents:
    """The content of a file.

    Raises:
        MissingWeights: there is no such file.
        BrokenWeights: it is larger than `MAX_BYTES`, or not a safetensors file.
    """
    if not path.is_file():
        raise MissingWeights(f"There is no adapter at {path}.")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BrokenWeights(f"{path}: {size:,} bytes are more than the limit of {MAX_BYTES:,}.", hint="Is it an adapter, or a model?")
        data = path.read_bytes()
    except OSError as error:
        raise BrokenWeights(f"{path} cannot be read: {error.strerror}.", hint="Is it on a disk that works?") from error
    return parse_contents(data, str(path))


def parse_contents(data: bytes, where: str) -> Contents:
    """The content of a file's bytes; ``where`` names them in errors.

    Raises:
        BrokenWeights: they are not a safetensors file.
    """
    try:
        entries = {key: Entry(tensor["dtype"], tuple(tensor["shape"]), tensor["data"]) for key, tensor in deserialize(data)}
    except SafetensorError as error:
        raise BrokenWeights(f"{where} is not a readable safetensors file: {error}.", hint="Fetch it again.") from error
    # `deserialize` has validated the header: a map of strings at most.
    length = int.from_bytes(data[:8], "little")
    header: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return Contents(entries, _own(header), header)


def _own(header: Mapping[str, str]) -> dict[str, str]:
    try:
        own = json.loads(header.get(METADATA, "{}"))
    except (json.JSONDecodeError, RecursionError):
        own = {}  # another program's key of the same name; free text never changes the update
    return {str(key): str(value) for key, value in own.items()} if isinstance(own, dict) else {}


def number(entry: Entry) -> float | None:
    """The one number of an entry of a float or integer dtype; None if it has more, or another dtype."""
    if entry.dtype not in FLOATS and entry.dtype not in INTEGERS or int(np.prod(entry.shape)) != 1:
        return None
    if entry.dtype in INTEGERS:
        return float(np.frombuffer(entry.data, INTEGERS[entry.dtype])[0])
    return _float(entry)


def _float(entry: Entry) -> float:
    if entry.dtype == "BF16":
        return float(np.frombuffer(bytes(2) + bytes(entry.data), "<f4")[0])
    if entry.dtype == "F8_E5M2":  # the upper half of float16
        return float(np.frombuffer(bytes(1) + bytes(entry.data), "<f2")[0])
    if entry.dtype == "F8_E4M3":
        bits = entry.data[0]
        sign, exponent, fraction = -1.0 if bits & 0x80 else 1.0, (bits >> 3) & 0xF, bits & 0x7
        if bits & 0x7F == 0x7F:
            return float("nan")
        return sign * (2.0 ** (exponent - 7) * (1 + fraction / 8) if exponent else 2.0**-6 * fraction / 8)
    kinds: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    return float(np.frombuffer(entry.data, kinds[entry.dtype])[0])


def shown(key: str) -> str:
    """A key for a message: itself where it is short and printable."""
    return key if key.isprintable() and len(key) <= 160 else f"{key[:120]!r}..."
