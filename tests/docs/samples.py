"""The samples of README.md and of the pages of docs/ and services/, and the environment that each is run in.

A sample is a fenced block. The comment above it, ``<!-- sample: ENVIRONMENT -->``, names one of `ENVIRONMENTS`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = {
    "system": "a folder with configs/, helm/ and the files that the page names; `sfumato up` runs there, ID is a finished run",
    "exported": "the same, after `sfumato export production --to artaug`",
    "server": "the same; the command is a server, which is started on a free port, becomes ready and ends on SIGTERM",
    "served": "a machine on which `sfumato serve` or the Bento listens on port 3000",
    "planned": "hours, GPUs or files of others: a spec is planned, the options of the other commands are parsed",
    "cluster": "a cluster: helm renders what it would install, kubectl makes what it would create, other options are parsed",
    "values": "a file of the user's: read by the program that reads it",
    "shown": "nothing: output, or a drawing",
}
_COMMENT = re.compile(r"<!-- sample: (\w+) -->")


@dataclass(frozen=True)
class Sample:
    """One fenced block: the page's path from the root, the block's first line, its language, its text and its environment."""

    page: str
    line: int
    language: str
    text: str
    environment: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"



def pages() -> list[Path]:
    """Every page that has samples for users: decision records are about the past."""
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "services").rglob("*.md")]
    return sorted(page for page in found if "decisions" not in page.parts)


def samples(environment: str = "") -> list[Sample]:
    """Every sample of every page, or those of one environment."""
    found = [sample for page in pages() for sample in samples_of(page)]
    return [sample for sample in found if environment in ("", sample.environment)]


def commands(environment: str) -> list[tuple[str, ...]]:
    """The words of each command of the environment's samples, without comments; each command once."""
    lines = [line for sample in samples(environment) for line in sample.text.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(tuple(words) for line in lines if (words := shlex.split(line, comments=True))))


def samples_of(page: Path) -> Iterator[Sample]:
    """The samples of a page in its order. A block without a comment has the environment ''."""
    environment = ""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "html_block":
            found = _COMMENT.search(token.content)
            environment = found[1] if found else ""
        elif token.type in ("fence", "code_block"):
            language = token.info.strip() if token.type == "fence" else "indented"
            yield Sample(str(page.relative_to(ROOT)), (token.map or [0])[0] + 1, language, token.content, environment)
            environment = ""
        elif token.type.endswith("_close"):
            environment = ""
