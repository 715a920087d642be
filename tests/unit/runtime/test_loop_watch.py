"""An event loop that stands still is told of, with the place where it stands, and its process still ends on SIGTERM and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sfumato.runtime import loop_watcher

SECONDS = 60.0
# Says what it does; `stand_still` holds Python's global lock, so that no Python code can run in any thread.
WATCHED = """
import asyncio, ctypes, sys, time
from pathlib import Path
from sfumato.runtime.child_processes import ChildProcess
from sfumato.runtime.loop_watch import LoopWatch

def stand_still(seconds):
    # A lock that the same thread holds already, as a fork handler may wait for one; signals do not end the waiting.
    libc, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_timedlock(lock, (ctypes.c_long * 2)(int(time.time()) + seconds, 0))

async def main():
    stop = asyncio.Event()
    child = ChildProcess(["sleep", "600"])
    with LoopWatch(Path(sys.argv[1]), stop.set, patience=float(sys.argv[2])):
        print(child.pid, flush=True)
        for seconds in map(int, sys.argv[3:]):
            stand_still(seconds)
            await asyncio.sleep(2.5)
        print("moves", flush=True)
        await stop.wait()
    print("asked to end", flush=True)
    child.end(10)

asyncio.run(main())
"""


@contextmanager
def watched(log: Path, patience: float, *seconds: int) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A process whose loop stands still for so many seconds, one after the other; and its child process."""
    line = [sys.executable, "-c", WATCHED, str(log), str(patience), *map(str, seconds)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, psutil.Process(int(process.stdout.readline()))
        finally:
            process.kill()


def wait_until(met: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def said(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def watcher(process: subprocess.Popen[str]) -> psutil.Process:
    (found,) = [child for child in psutil.Process(process.pid).children() if "loop_watcher" in " ".join(child.cmdline())]
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_whose_loop_moves_is_asked_to_end(tmp_path: Path, number: signal.Signals) -> None:
    with watched(tmp_path / "watch.log", 10.0) as (process, _):
        assert process.stdout is not None and process.stdout.readline() == "moves\n"
        process.send_signal(number)
        assert process.communicate(timeout=SECONDS)[0] == "asked to end\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_whose_loop_stands_still_ends_with_its_children(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "watch.log"
    with watched(log, 1.0, 600) as (process, child):
        wait_until(lambda: "stands still" in said(log), "nothing was said")
        process.send_signal(number)
        _, words = process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGKILL
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child is left")
    # The place where the main thread stands, on the standard error and in the log.
    assert "in stand_still" in words and "in stand_still" in said(log) and "it is killed" in said(log)


def test_a_signal_that_arrives_before_it_is_known_that_the_loop_stands_still_counts(tmp_path: Path) -> None:
    log = tmp_path / "watch.log"
    with watched(log, 1.0, 600) as (process, _):
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGKILL and "in stand_still" in said(log)


def test_a_loop_that_moves_again_is_told_of_and_its_process_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "watch.log"
    with watched(log, 3.0, 6) as (process, _):
        assert process.stdout is not None and process.stdout.readline() == "moves\n"
        wait_until(lambda: said(log).count("moves again"), said(log))
        process.terminate()
        assert process.communicate(timeout=SECONDS)[0] == "asked to end\n"


def test_a_stopped_process_is_told_of_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "watch.log"
    with watched(log, 3.0) as (process, _):
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: "is it stopped?" in said(log), "nothing was said")
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: "moves again" in said(log), "it does not move")
        process.terminate()
        assert process.communicate(timeout=SECONDS)[0].endswith("asked to end\n")


# Threads at work, whose stacks change all the time.
BUSY = """
import asyncio, sys, threading, urllib.request
from pathlib import Path
from sfumato.runtime.loop_watch import LoopWatch

def work():
    while True:
        urllib.request.build_opener()

async def main():
    for _ in range(6):
        threading.Thread(target=work, daemon=True).start()
    stop = asyncio.Event()
    with LoopWatch(Path(sys.argv[1]), stop.set):
        print("moves", flush=True)
        await stop.wait()
    print("asked to end", flush=True)

asyncio.run(main())
"""


def test_writing_the_stack_does_not_harm_a_process_whose_other_threads_are_at_work(tmp_path: Path) -> None:
    """With the stacks of all threads it crashed after some two hundred times."""
    line = [sys.executable, "-c", BUSY, str(tmp_path / "watch.log")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "moves\n"
        for _ in range(1000):
            assert process.poll() is None
            process.send_signal(loop_watcher.TELL)
            time.sleep(0.001)
        process.terminate()
        assert process.communicate(timeout=SECONDS)[0] == "asked to end\n" and process.returncode == 0
    assert "in select" in said(tmp_path / "watch.log")


def test_the_watching_process_is_started_again(tmp_path: Path) -> None:
    with watched(tmp_path / "watch.log", 10.0) as (process, _):
        assert process.stdout is not None and process.stdout.readline() == "moves\n"
        first = watcher(process)
        first.kill()
        wait_until(lambda: not first.is_running() and watcher(process), "there is no other")
        os.kill(watcher(process).pid, signal.SIGSTOP)
        process.terminate()
        assert process.communicate(timeout=SECONDS)[0] == "asked to end\n" and process.returncode == 0
