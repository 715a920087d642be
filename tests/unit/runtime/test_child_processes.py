"""Child processes end with everything that they have started, and with the process that started them, whatever ends either."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sfumato.runtime.child_processes import ChildProcess, program_of

SECONDS = 60.0
# A process, a child of it, one in a session of its own, and one whose parent has ended; each writes down its number.
FAMILY = """
import os, subprocess, sys, time
def note():
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()} {len(sys.argv) - 2}\\n")
def start(*words, **options):
    return subprocess.Popen([sys.executable, __file__, sys.argv[1], *sys.argv[2:], *words], **options)
depth = len(sys.argv) - 2
note()
if depth == 0:
    start("child")
    start("child", start_new_session=True)
    parent = start("child", "parent-that-ends")
    time.sleep(600)
if sys.argv[-1] == "parent-that-ends":
    start("grandchild", start_new_session=True)
    sys.exit()
time.sleep(600)
"""
PARENT = """
import sys, threading, time
from sfumato.runtime.child_processes import ChildProcess
started = []
# A thread starts the child and ends: the child stays for as long as the process does.
thread = threading.Thread(target=lambda: started.append(ChildProcess([sys.executable, *sys.argv[1:]])))
thread.start()
thread.join()
print(started[0].pid, flush=True)
time.sleep(600)
"""
NATS = """
import sys, time
from pathlib import Path
from sfumato.runtime.bus.nats_server import NatsServer
server = NatsServer(Path(sys.argv[1]))
server.start()
print(server.process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    return script


def wait_until(met: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def alive(process: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


def members(notes: Path, count: int = 5) -> list[int]:
    """The processes of a family once all of them have begun; the first is the program."""
    wait_until(lambda: notes.exists() and notes.read_text().count("\n") == count, "the family is not complete")
    return [int(line.split()[0]) for line in notes.read_text().splitlines()]


def started(family: Path) -> tuple[ChildProcess, list[int]]:
    notes = family.with_suffix(".notes")
    process = ChildProcess([sys.executable, str(family), str(notes)])
    return process, members(notes)


def none_is_alive(processes: list[int]) -> None:
    wait_until(lambda: not any(map(alive, processes)), f"{[pid for pid in processes if alive(pid)]} of {processes} are left")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_descendants_end_before_a_program_counts_as_ended(family: Path, number: signal.Signals) -> None:
    process, found = started(family)
    os.kill(found[0], number)
    assert process.wait(SECONDS) == -number
    assert not any(map(alive, found))


def test_stopped_processes_end_too(family: Path) -> None:
    process, found = started(family)
    for member in found:
        if alive(member):
            os.kill(member, signal.SIGSTOP)
    assert process.end(SECONDS) == -signal.SIGTERM
    assert not any(map(alive, found))


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    process = ChildProcess([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    assert process.end(0.2) == -signal.SIGKILL
    process.stdout.close()


def test_a_killed_program_and_its_descendants_are_gone_when_kill_has_been_waited_for(family: Path) -> None:
    process, found = started(family)
    process.kill()
    assert process.wait(SECONDS) == -signal.SIGKILL
    assert not any(map(alive, found))


def test_the_program_and_its_session_end_when_the_guard_itself_is_killed(family: Path) -> None:
    process, found = started(family)
    in_session = [pid for pid in found if alive(pid) and os.getsid(pid) == process.pid]
    apart = [pid for pid in found if alive(pid) and pid not in in_session]
    try:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(SECONDS) == -signal.SIGKILL
        assert found[0] in in_session and len(in_session) == 2
        assert not any(map(alive, in_session))
    finally:
        for pid in apart:  # what made a session for itself is out of reach without the guard
            os.kill(pid, signal.SIGKILL)


# Shared memory that a child uses too, which ignores SIGTERM: as that of vLLM's engine.
SHARED = """
import multiprocessing, signal, time
from multiprocessing.shared_memory import SharedMemory

def use(memory):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(memory.name, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    memory = SharedMemory(create=True, size=4096)
    multiprocessing.get_context("spawn").Process(target=use, args=[memory]).start()
    time.sleep(600)
"""


@pytest.mark.parametrize("killed", ["the program", "its guard", "all by its parent"])
def test_shared_memory_is_removed(tmp_path: Path, killed: str) -> None:
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    process = ChildProcess([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    memory = Path("/dev/shm") / process.stdout.readline().decode().strip()
    assert memory.is_file()
    if killed == "the program":
        psutil.Process(process.pid).children()[0].kill()
    elif killed == "its guard":
        os.kill(process.pid, signal.SIGKILL)
    else:
        process.kill()
    assert process.wait(SECONDS) == -signal.SIGKILL
    process.stdout.close()
    assert not memory.exists()


def test_exit_codes_are_the_programs(tmp_path: Path) -> None:
    assert ChildProcess([sys.executable, "-c", "raise SystemExit(7)"]).wait(SECONDS) == 7
    process = ChildProcess(["no-such-program"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process.stderr as words:
        assert words.read() == b"no-such-program cannot be started: No such file or directory\n"
    assert process.wait(SECONDS) == 127


def test_a_program_gets_the_descriptors_that_it_is_passed_and_no_other() -> None:
    reading, writing = os.pipe()
    script = "import os, sys; os.write(int(sys.argv[1]), ' '.join(sorted(os.listdir('/proc/self/fd'))).encode())"
    process = ChildProcess([sys.executable, "-c", script, str(writing)], pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading) as given:
        descriptors = {int(name) for name in given.read().split()}  # ends only if the guard does not keep the pipe open
    assert process.wait(SECONDS) == 0
    assert writing in descriptors and len(descriptors - {0, 1, 2, writing}) == 1  # that of the listing


@contextlib.contextmanager
def parent(script: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has started a child process, and the child's guard."""
    line = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        try:
            yield starter, int(starter.stdout.readline())
        finally:
            starter.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_family_ends_when_the_process_that_started_it_is_killed(family: Path, number: signal.Signals) -> None:
    notes = family.with_suffix(".notes")
    with parent(PARENT, str(family), str(notes)) as (starter, guard):
        found = [guard, *members(notes)]
        time.sleep(0.2)
        assert alive(guard) and alive(found[1])
        starter.send_signal(number)
        none_is_alive(found)


def test_a_stopped_program_ends_when_the_process_that_started_it_is_killed(family: Path) -> None:
    notes = family.with_suffix(".notes")
    with parent(PARENT, str(family), str(notes)) as (starter, guard):
        found = [guard, *members(notes)]
        for member in found[1:]:
            if alive(member):
                os.kill(member, signal.SIGSTOP)
        starter.kill()
        none_is_alive(found)


def test_nats_server_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    with parent(NATS, str(tmp_path)) as (starter, guard):
        (server,) = psutil.Process(guard).children()
        assert server.name() == "nats-server" and program_of(psutil.Process(guard))[0].endswith("nats-server")
        starter.kill()
        none_is_alive([guard, server.pid])


def test_no_fork_handler_runs_when_a_child_process_is_started() -> None:
    """gRPC's handlers wait for gRPC's threads: a process in which one of them waits for ever starts nothing more."""
    script = f"""
import ctypes, os, subprocess, sys
sys.path[:0] = {sys.path!r}
from sfumato.runtime.child_processes import ChildProcess
ran = []
handler = ctypes.CFUNCTYPE(None)(lambda: ran.append("C"))
assert ctypes.CDLL(None)["__register_atfork"](handler, None, None, None) == 0
os.register_at_fork(before=lambda: ran.append("Python"))
assert ChildProcess([sys.executable, "-c", "pass"], stdin=subprocess.DEVNULL, cwd="/", env=dict(os.environ)).wait() == 0
assert ran == [], ran
if (pid := os.fork()) == 0:
    os._exit(0)
os.waitpid(pid, 0)
assert ran == ["Python", "C"], ran
"""
    subprocess.run([sys.executable, "-c", script], check=True)
