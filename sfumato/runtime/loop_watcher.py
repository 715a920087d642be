"""The watching process of `sfumato.runtime.loop_watch`; started by the path of this file, it imports the standard library only.

    python -I -S loop_watcher.py {"pid": 1, "log": "PATH", "patience": 10}

It reads single bytes from its standard input: 0 when the loop of the process ``pid`` moves, else the number of a signal that the process
received. The end of file means that the process has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

ALIVE = b"\0"
TELL = signal.SIGUSR2
"""Has the watched process write the stack of its main thread to the log: by faulthandler, which needs no Python code to run."""
DUMPING = 1.0
"""Seconds for this."""


class Watcher:
    """What is known of the watched process."""

    def __init__(self, pid: int, log: Path, patience: float) -> None:
        """See above."""
        self._pid, self._log, self._patience = pid, log, patience
        self._moved = time.monotonic()
        self._asked = self._still = False

    def run(self) -> None:
        """Watch it until it ends."""
        os.set_blocking(0, False)
        while True:
            left = max(self._moved + self._patience - time.monotonic(), 0.0) if not self._still or self._asked else None
            if select.select([0], [], [], left)[0]:
                if not self._read():
                    return
            elif not self._still:
                self._still = True
                self._tell_stack()
            elif self._asked:
                self._say("it was told to end and stands still: it is killed, and its programs end with it")
                os.kill(self._pid, signal.SIGKILL)
                return

    def _read(self) -> bool:
        """Read what has arrived; False at the end of file."""
        data = os.read(0, 4096)
        if 0 in data:
            if self._still:
                self._say(f"the event loop moves again, after {time.monotonic() - self._moved:.0f} s")
            self._moved, self._still = time.monotonic(), False
        self._asked = self._asked or signal.SIGTERM in data or signal.SIGINT in data
        return bool(data)

    def _tell_stack(self) -> None:
        begin = self._log.stat().st_size if self._log.exists() else 0
        if sys.platform == "linux":  # the main thread has the process's number; os.kill leaves the thread to the kernel
            ctypes.CDLL(None).tgkill(self._pid, self._pid, TELL)
        else:
            os.kill(self._pid, TELL)
        time.sleep(DUMPING)
        stack = b""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
            log.seek(begin)
            stack = log.read()
        told = f"its main thread:\n{stack.decode(errors='replace')}" if stack else "it writes no stack: is it stopped?"
        self._say(f"the event loop of process {self._pid} stands still for {self._patience:.0f} s; {told}")

    def _say(self, words: str) -> None:
        line = f"sfumato        watch: {words}\n".encode()
        with self._log.open("ab") as log:
            log.write(line)
        # A terminal that is held must not hold this process.
        if select.select([], [2], [], 0)[1]:
            os.write(2, line[:4096])


def main() -> None:
    """See above."""
    given = json.loads(sys.argv[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the process that it watches
    Watcher(given["pid"], Path(given["log"]), given["patience"]).run()


if __name__ == "__main__":
    main()
