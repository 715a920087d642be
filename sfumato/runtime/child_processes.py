"""Child processes that end with the process that started them, together with everything that they have started.

This is the only way in which programs start a process that stays. A process in which gRPC runs must not fork: gRPC's fork handlers wait
for its threads, and Python calls them, like every handler, for a ``preexec_fn`` and for `os.fork`. `subprocess.Popen` without
``preexec_fn`` and ``user`` uses vfork, which calls no handlers. What a ``preexec_fn`` would do, the guard does (`sfumato.runtime.guard`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from sfumato.runtime import guard

GONE = 10.0
"""Seconds in which killed processes must be gone."""


class ChildProcess(subprocess.Popen[bytes]):
    """A program and its descendants. ``pid`` is the guard's; the return code is the program's.

    When it has ended, none of its descendants runs. When this process ends, by whatever signal, the program gets SIGTERM, and SIGKILL
    5 s later. It has its own session: Ctrl-C reaches this process only. Callable from any thread.
    """

    def __init__(self, line: Sequence[str], *, pass_fds: Sequence[int] = (), **options: Any) -> None:
        """Start ``line``, with further options of `subprocess.Popen`; a program that does not exist ends with code 127."""
        self._lifeline, self._sweeping = -1, threading.Lock()
        lifeline, kept = os.pipe()
        given = json.dumps({"lifeline": lifeline, "pass": list(pass_fds)})
        try:
            program = [sys.executable, "-I", "-S", guard.__file__, "run", given, *line]
            super().__init__(program, pass_fds=[lifeline, *pass_fds], start_new_session=True, **options)
        except BaseException:
            os.close(kept)
            raise
        finally:
            os.close(lifeline)
        self._lifeline = kept

    def poll(self) -> int | None:
        """The return code if it has ended."""
        code = super().poll()
        if code is not None:
            self._sweep()
        return code

    def wait(self, timeout: float | None = None) -> int:
        """The return code once it has ended. Raises subprocess.TimeoutExpired."""
        code = super().wait(timeout)
        self._sweep()
        return code

    def terminate(self) -> None:
        """Send the program SIGTERM, also if it is stopped."""
        self.send_signal(signal.SIGTERM)
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the program and its descendants; `wait` returns when they are gone."""
        self.send_signal(guard.KILL)
        self.send_signal(signal.SIGCONT)

    def end(self, grace: float) -> int:
        """Terminate it, kill it after ``grace`` seconds; the return code once it has ended."""
        self.terminate()
        try:
            return self.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()

    def _sweep(self) -> None:
        """After the guard's end: kill what is left in its session, which is nothing unless the guard itself was killed."""
        with self._sweeping:
            if self._lifeline < 0:
                return
            os.close(self._lifeline)
            self._lifeline = -1
            began = time.monotonic()
            while (left := _in_session(self.pid)) and time.monotonic() < began + GONE:
                for process in left:
                    if guard.cleans_up(process.pid) and time.monotonic() < began + guard.LEFT:
                        continue
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(left, timeout=0.05)


def _in_session(session: int) -> list[psutil.Process]:
    """The running processes of a session."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(pid) == session and (process := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def program_of(process: psutil.Process) -> list[str]:
    """The command line that a process guards; its own command line if it is no guard."""
    line = process.cmdline()
    if len(line) > 6 and Path(line[3]) == Path(guard.__file__) and line[4] == "run":
        return line[6:]
    return line
