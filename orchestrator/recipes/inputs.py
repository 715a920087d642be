"""Sets of prompts that a run is given: which ones a method reads, and how they are read from text files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.engine.rows import to_row_file
from sfumato.errors import InvalidInput

MANY = 10_000
"""Prompts that are held in memory; more are read from a file as they are needed."""


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
        """Whether a section may go without the set."""
        return self.key != "file"

    @property
    def field(self) -> str:
        """The section, or the section and the key where it is not ``file``."""
        return f"{self.section}.{self.key}" if self.optional else self.section

    @property
    def file_name(self) -> str:
        """The name of its file in a report where the spec gives none."""
        return f"{self.name}.txt"

    def count(self, content: Mapping[str, Any]) -> int | None:
        """How many prompts a spec's content asks for; None where it does not say so."""
        count = value_at(content, self.section, "count")
        return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def value_at(content: Mapping[str, Any], section: str, key: str) -> Any:
    """A value of a section of a spec's content, None where there is none."""
    part = content.get(section)
    return part.get(key) if isinstance(part, Mapping) else None


def prompts_in(file: Path, count: int | None, field: str) -> Iterator[str]:
    """The first ``count`` prompts of a file, or as many as it has; empty lines and lines that begin with # do not count.

    Raises:
        InvalidInput: named after ``field``: no such file, or not text.
    """
    if not file.is_file():
        raise InvalidInput(f"{field}.file", f"there is no file {file}.", hint="Give a text file with one prompt a line.")
    try:
        with file.open(encoding="utf-8") as lines:
            yield from islice((prompt for line in lines if (prompt := line.strip()) and not prompt.startswith("#")), count)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{field}.file", f"{file} is not UTF-8 text.") from error


def held(prompts: Iterable[str], count: int) -> Sequence[str]:
    """About ``count`` prompts, in memory if they are not very many."""
    return tuple(prompts) if count <= MANY else to_row_file(prompts)
