"""The sets of prompts of a run: their definitions, and reading them from text files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.engine.rows import to_row_file
from sfumato.errors import InvalidInput
from sfumato.texts import lines_of

MANY = 10_000
"""Maximum number of prompts that are held in memory; larger sets are read from a file."""


@dataclass(frozen=True, slots=True)
class Input:
    """A set of prompts of a method, by name.

    ``section`` of the spec names its file under ``key``, and the number of prompts that are used under ``count``. A set shares no prompt
    with those it is ``apart_from``. A set whose ``key`` is not ``file`` may be missing.
    """

    name: str
    section: str
    key: str = "file"
    apart_from: tuple[str, ...] = ()

    @property
    def optional(self) -> bool:
        """Whether the set may be missing from its section."""
        return self.key != "file"

    @property
    def field(self) -> str:
        """The section; followed by the key unless it is ``file``."""
        return f"{self.section}.{self.key}" if self.optional else self.section

    @property
    def file_name(self) -> str:
        """The name of its file in a report if the spec has none."""
        return f"{self.name}.txt"

    def count(self, content: Mapping[str, Any]) -> int | None:
        """The number of prompts in a spec's content; None if it is missing."""
        count = value_at(content, self.section, "count")
        return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def value_at(content: Mapping[str, Any], section: str, key: str) -> Any:
    """A value of a section of a spec's content; None if it is missing."""
    part = content.get(section)
    return part.get(key) if isinstance(part, Mapping) else None


def prompts_in(file: Path, count: int | None, field: str) -> Iterator[str]:
    """The first ``count`` prompts of a file, normalised, fewer if it has fewer; empty lines and lines that begin with # are skipped.

    Raises:
        InvalidInput: named after ``field``: no such file, or not UTF-8 text.
    """
    if not file.is_file():
        raise InvalidInput(f"{field}.file", f"there is no file {file}.", hint="Give a text file with one prompt a line.")
    yield from islice(lines_of(file, f"{field}.file"), count)


def held(prompts: Iterable[str], count: int) -> Sequence[str]:
    """About ``count`` prompts, in memory if they are few."""
    return tuple(prompts) if count <= MANY else to_row_file(prompts)
