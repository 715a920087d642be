"""Watches the event loop of the main thread, from another process: says where it stands still, and ends the process on SIGTERM then.

A thread could not do this: whatever blocks the main thread may hold Python's global lock. The loop writes a byte to the watching process
every second; Python's C handler of signals writes each signal's number to the same pipe, also when no Python code can run.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from sfumato.runtime import loop_watcher

BEAT = 1.0
"""Seconds between two bytes to the watching process."""
PATIENCE = 10.0
"""Seconds without a byte after which the loop stands still."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class LoopWatch:
    """Watches the running loop within a ``with`` block, and calls ``on_signal`` in it for each SIGTERM and SIGINT.

    If the loop stands still for ``patience`` seconds, the watching process writes this and the stack of the main thread to the standard
    error and to ``log``. If SIGTERM or SIGINT has arrived, it kills this process then: its child processes end with it.
    """

    def __init__(self, log: Path, on_signal: Callable[[], None], patience: float = PATIENCE) -> None:
        """Configure it; the folder of ``log`` exists."""
        self._log, self._on_signal, self._patience = log, on_signal, patience
        self._watcher: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> LoopWatch:
        self._loop = asyncio.get_running_loop()
        self._stacks: IO[bytes] = self._log.open("ab")
        # The thread that gets the signal only: other threads run on meanwhile, and reading their stacks may crash the process.
        faulthandler.register(loop_watcher.TELL, file=self._stacks, all_threads=False)
        self._before = {number: signal.signal(number, self._received) for number in SIGNALS}
        self._start()
        self._beat()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._next.cancel()
        self._stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        faulthandler.unregister(loop_watcher.TELL)
        self._stacks.close()

    def _received(self, _: int, __: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._on_signal)

    def _start(self) -> None:
        given = json.dumps({"pid": os.getpid(), "log": str(self._log.absolute()), "patience": self._patience})
        line = [sys.executable, "-I", "-S", loop_watcher.__file__, given]
        # A session of its own: Ctrl-C does not end it.
        watcher = self._watcher = subprocess.Popen(line, bufsize=0, stdin=subprocess.PIPE, start_new_session=True)
        assert watcher.stdin is not None
        self._pipe = watcher.stdin.fileno()
        os.set_blocking(self._pipe, False)
        signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)

    def _stop(self) -> None:
        signal.set_wakeup_fd(-1)
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
            self._watcher.kill()
            self._watcher.wait()

    def _beat(self) -> None:
        try:
            os.write(self._pipe, loop_watcher.ALIVE)
        except BlockingIOError:
            pass  # the watching process is stopped, and has bytes to read
        except BrokenPipeError:
            self._stop()
            self._start()
        self._next = self._loop.call_later(BEAT, self._beat)
