"""Runs one program, and ends it with everything that it has started: when it ends, and when the process that asked for it ends.

    python -I -S guard.py run {"lifeline": 3, "pass": [5]} PROGRAM ARGUMENT...

`sfumato.runtime.child_processes` starts this file by its path, as a process of its own session. It imports the standard library only:
one of these runs for every program. ``lifeline`` is the read end of a pipe whose write end the asking process alone holds: the end of
file means that the asking process is gone, also by SIGKILL. ``pass`` are file descriptors for the program.

On Linux every orphan among the program's descendants becomes a child of this process (a "child subreaper", prctl(2)), whatever session
it made for itself; the kernel kills the program when this process is killed.

SIGTERM, SIGINT and SIGHUP are forwarded to the program. SIGUSR1 kills the program and all its descendants. The exit status is the
program's: its code, or its signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

KILL = signal.SIGUSR1
"""Kills the program and all its descendants."""
ORPHANED = 5.0
"""Seconds that the program has to end by SIGTERM when the process that asked for it is gone."""
LEFT = 3.0
"""Seconds that descendants have to end by SIGTERM when the program has ended, and what cleans up after them when they are killed."""
UNKILLABLE = 10.0
"""Seconds after SIGKILL in which descendants must be gone; a process that waits for a device may take longer."""
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


class Guard:
    """The program and its descendants, from start to end."""

    def __init__(self, lifeline: int, passed: Sequence[int], line: Sequence[str]) -> None:
        """Start the program ``line``; ``lifeline`` and ``passed`` are as above."""
        self._woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (*_FORWARDED, KILL, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # the number arrives at the wake-up descriptor
        _prctl(_SET_CHILD_SUBREAPER, 1)
        become = [sys.executable, "-I", "-S", __file__, "become", str(os.getpid())]
        # A group of its own: what the program sends to its group does not reach this process.
        self._program = subprocess.Popen([*become, *line], process_group=0, pass_fds=passed)
        for descriptor in passed:
            os.close(descriptor)
        self._poll = select.poll()
        self._poll.register(lifeline, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)
        self._lifeline, self._status, self._killing = lifeline, None, False

    def run(self) -> int:
        """Wait for the program's end, end its descendants, and return its wait status."""
        deadline: float | None = None
        while self._status is None:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if self._wait(left) and deadline is None:
                deadline = time.monotonic() + ORPHANED
                self._forward(signal.SIGTERM)
            if deadline is not None and time.monotonic() >= deadline:
                self._kill()
        self._end_descendants()
        return self._status

    def _wait(self, seconds: float | None) -> bool:
        """Wait for a signal and handle it; returns whether the asking process is gone."""
        orphaned = False
        for descriptor, _ in self._poll.poll(None if seconds is None else seconds * 1000):
            if descriptor == self._lifeline:
                orphaned = True
                self._poll.unregister(self._lifeline)
                continue
            for number in os.read(self._woken, 4096):
                if number in _FORWARDED:
                    self._forward(number)
                elif number == KILL:
                    self._kill()
        self._reap()
        return orphaned

    def _forward(self, number: int) -> None:
        if self._status is None:
            os.kill(self._program.pid, number)
            os.kill(self._program.pid, signal.SIGCONT)  # a stopped program hears it too

    def _kill(self) -> None:
        self._killing = True
        if self._status is None:
            os.kill(self._program.pid, signal.SIGKILL)

    def _reap(self) -> bool:
        """Collect ended children; returns whether any child is left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._program.pid:
                    self._status = status
                    self._program.returncode = os.waitstatus_to_exitcode(status)
        return False

    def _end_descendants(self) -> None:
        """End what the program has left: SIGTERM, then SIGKILL until nothing is left. Children of what ends become ours."""
        if sys.platform != "linux":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._program.pid, signal.SIGKILL)
            return
        self._reap()
        if not (left := _children()):
            return
        if not self._killing:
            print(f"ends what the program has left: {', '.join(map(_name, left))}", file=sys.stderr, flush=True)
            for pid in left:
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGCONT)
            deadline = time.monotonic() + LEFT
            while self._reap() and not self._killing and time.monotonic() < deadline:
                self._wait(0.05)
        began = time.monotonic()
        while self._reap():
            # Only direct children: their numbers cannot be reused before they are collected here.
            for pid in (left := _children()):
                spared = cleans_up(pid) and time.monotonic() < began + LEFT
                os.kill(pid, signal.SIGCONT if spared else signal.SIGKILL)
            if time.monotonic() > began + UNKILLABLE:
                print(f"cannot end {', '.join(map(_name, left))}", file=sys.stderr, flush=True)
                return
            time.sleep(0.01)


def become(guard: int, line: Sequence[str]) -> NoReturn:
    """Replace this process by a program that the kernel kills when its parent, the process ``guard``, is killed."""
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(1)  # it was killed before
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program inherits that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(line[0], list(line))
    except OSError as error:
        print(f"{line[0]} cannot be started: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)


def _end_as(status: int) -> NoReturn:
    """End with the wait status of another process."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has written its own
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(abs(code))


def cleans_up(pid: int) -> bool:
    """Whether a process is multiprocessing's tracker: it removes shared memory, and ends, when all that use it have ended."""
    with contextlib.suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _children() -> list[int]:
    """The direct children of this process that run."""
    own, found = str(os.getpid()), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if parent == own and state != "Z":
                found.append(int(stat.parent.name))
    return found


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"{Path(f'/proc/{pid}/cmdline').read_text().replace(chr(0), ' ').strip()[:80]} ({pid})"
    return str(pid)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> NoReturn:
    """See above."""
    how, given, *line = sys.argv[1:]
    if how == "become":
        become(int(given), line)
    options = json.loads(given)
    _end_as(Guard(options["lifeline"], options["pass"], line).run())


if __name__ == "__main__":
    main()
