"""What `sfumato up` shows: every line of every service with its name before it, and where everything is."""

from __future__ import annotations

import json
import sys
import zlib

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfumato.runtime.system import System

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_yellow", "bright_magenta", "bright_blue")
LEVELS = {"warning": "yellow", "error": "red", "critical": "bold red"}
WIDTH = 14
_KNOWN = ("message", "level", "logger", "timestamp", "exception", "stack")


class View:
    """Writes to standard error, in colour on a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def line(self, name: str, line: bytes) -> None:
        """A line that a program wrote: one of its log, in words, or whatever else it is."""
        text = line.decode(errors="replace")
        try:
            told = json.loads(text)
            message = str(told["message"])
        except (ValueError, KeyError, TypeError):
            return self._write(name, text, "")
        words = " ".join(f"{key}={value}" for key, value in told.items() if key not in _KNOWN)
        self._write(name, f"{message}  {words}".rstrip(), LEVELS.get(str(told.get("level")), ""))
        for line_of_error in str(told.get("exception", "")).splitlines():
            self._write(name, line_of_error, "dim")

    def say(self, what: str, words: str) -> None:
        """Something of this command's own."""
        for line in words.splitlines():
            self._write("sfumato", f"{what}: {line}", "bold")

    def show(self, system: System, seconds: float) -> None:
        """Where everything is, once it is up after so many seconds."""
        self._console.print(self.table(system))
        self._write("sfumato", f"all is up after {seconds:.1f} s; Ctrl-C ends it", "bold green")

    def table(self, system: System) -> Table:
        """The addresses of a system."""
        table = Table("service", "gRPC", "metrics")
        for name, member in system.members.items():
            table.add_row(name, member.address, f"http://{member.metrics}/metrics")
        table.add_row("bus", system.bus, "")
        return table

    def _write(self, name: str, text: str, style: str) -> None:
        # What a log quotes may be anybody's words: nothing of them is to reach the terminal but what can be seen.
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        prefix = Text(f"{name[:WIDTH]:<{WIDTH}} ", COLOURS[zlib.crc32(name.encode()) % len(COLOURS)])
        self._console.print(prefix + Text(shown, style))


def print_table(system: System) -> None:
    """The addresses of a system, to standard output."""
    Console(file=sys.stdout).print(View().table(system))
