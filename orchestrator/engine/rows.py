"""Rows in a temporary file, for samples that are too many to hold in memory; read as a sequence.

A run stores its samples here, so that its memory does not depend on their number. The file has no name, is deleted when the process
ends, and only holds data that the manifests hold too.
"""

from __future__ import annotations

import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar, overload

from pydantic import TypeAdapter
from pydantic_core import to_json

RowT = TypeVar("RowT")

BLOCK = 64


class RowFile(Sequence[RowT]):
    """Rows in blocks of ``size`` (only the last has fewer), each written once, in any order; complete when all blocks are written.

    Rows are numbers, strings or dataclasses, all of one type. They are stored as JSON, which round-trips every float exactly.
    """

    def __init__(self, size: int = BLOCK) -> None:
        self._size, self._rows = size, 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the object
        self._starts = array("q")
        self._type: type[Any] | None = None
        weakref.finalize(self, self._file.close)

    def put(self, block: int, rows: Sequence[RowT]) -> None:
        """Write a block."""
        self._type = self._type or type(rows[0])
        self._starts.extend([-1] * (block + 1 - len(self._starts)))
        self._starts[block] = self._file.seek(0, 2)
        self._file.write(to_json(rows, inf_nan_mode="constants") + b"\n")
        self._rows += len(rows)

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[RowT]:
        for block in range(len(self._starts)):
            yield from self._block(block)

    @overload
    def __getitem__(self, index: int) -> RowT: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[RowT, ...]: ...

    def __getitem__(self, index: int | slice) -> RowT | tuple[RowT, ...]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self))))
        at = range(len(self))[index]
        return self._block(at // self._size)[at % self._size]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented
        return all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __deepcopy__(self, memo: object) -> RowFile[RowT]:
        return self  # rows are immutable

    def _block(self, block: int) -> list[RowT]:
        assert self._type is not None
        self._file.seek(self._starts[block])
        return _rows_of(self._type).validate_json(self._file.readline())


@lru_cache(maxsize=8)
def _rows_of(kind: type[Any]) -> TypeAdapter[list[Any]]:
    return TypeAdapter(list[kind])  # pyright: ignore[reportInvalidTypeForm]


def batched(rows: Iterable[RowT], size: int) -> Iterator[tuple[RowT, ...]]:
    """Rows in groups of ``size`` (the last may be smaller), read lazily."""
    source = iter(rows)
    while group := tuple(islice(source, size)):
        yield group


def to_row_file(rows: Iterable[RowT]) -> RowFile[RowT]:
    """Write rows to a file."""
    rows_on_file: RowFile[RowT] = RowFile()
    for block, group in enumerate(batched(rows, BLOCK)):
        rows_on_file.put(block, group)
    return rows_on_file
