"""Child processes that end with the process that started them, also when it is killed."""

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
_LIBC = ctypes.CDLL(None)  # looked up here: a child must not do it between fork and exec
# Linux ends a child with the thread that started it, so one thread, which ends with the process, starts all of them.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="child-processes")


def start(line: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program, with `subprocess.Popen`'s options; when this process is killed, Linux sends the child SIGTERM.

    Callable from any thread. On other systems than Linux the child keeps running.
    """
    options["preexec_fn"] = functools.partial(end_with, os.getpid())
    return _STARTER.submit(subprocess.Popen[bytes], line, **options).result()


def end_with(starter: int) -> None:
    """Run in a child before its program: the child ends with the thread that started it, of the process ``starter``."""
    if sys.platform != "linux":
        return
    _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != starter:
        os._exit(1)  # the parent process has ended already
