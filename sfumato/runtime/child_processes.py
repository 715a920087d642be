"""Child processes that do not outlive whoever started them, be it killed outright."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)  # looked up here, for a child between fork and exec must not
# Linux ends a child with the thread that started it, so one thread starts all of them, and ends with the process.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="child-processes")


def start(line: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program, with `subprocess.Popen`'s options; where this process is killed, Linux tells the child to end (SIGTERM).

    Any thread may start one. Elsewhere than on Linux the child stays.
    """
    options["preexec_fn"] = functools.partial(end_with, os.getpid())
    return _STARTER.submit(subprocess.Popen[bytes], line, **options).result()


def end_with(starter: int) -> None:
    """Run in a child before its program: it ends with the thread that started it, of the process ``starter``."""
    if sys.platform != "linux":
        return
    _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != starter:
        os._exit(1)  # it was too late to ask
