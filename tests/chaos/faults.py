"""Faults on the processes of `sfumato up`: every kind of process is killed, stopped for longer than the patience, and terminated."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from sfumato.runtime import guard, loop_watcher
from sfumato.runtime.child_processes import program_of

STOPPED = (1.3, 2.5)
"""How long a process is stopped, in units of the patience."""
BETWEEN = (4.0, 6.0)
"""Seconds from one fault to the next."""
OWN = "sfumato up"
_NAMES = {"vllm.entrypoints.openai.api_server": "vllm", "orchestrator.app": "orchestrator"}


def processes(up: psutil.Process) -> dict[str, psutil.Process]:
    """The running processes of a system by name: itself, the watcher, guards, programs, and what programs have started."""
    found: dict[str, psutil.Process] = {OWN: up}
    for child in _children(up):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            if loop_watcher.__file__ in child.cmdline():
                found["watcher"] = child
            elif guard.__file__ in child.cmdline():
                name = _name(program_of(child), found)
                found[f"guard of {name}"] = child
                for program in _children(child):
                    found[name] = program
                    for index, process in enumerate(program.children(recursive=True)):
                        found[f"{name}'s {process.name()} {index}"] = process
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return sorted(process.children(), key=lambda child: child.pid)
    return []


def _name(line: list[str], taken: Mapping[str, object]) -> str:
    module = line[line.index("-m") + 1] if "-m" in line else Path(line[0]).name
    name = _NAMES.get(module, module.removeprefix("services.").removesuffix(".app"))
    return name if name not in taken else f"{name}-{sum(other.partition('-')[0] == name for other in taken) + 1}"


class Faults:
    """Strikes one process after another; each kind of process in turn, each kind of fault in turn, both in a random order."""

    def __init__(self, up: psutil.Process, seed: int, patience: float) -> None:
        """``patience``: seconds after which a silent process counts as lost."""
        self._up, self._random, self._patience = up, random.Random(seed), patience
        self._turn: list[tuple[str, signal.Signals]] = []
        self._resumed: list[tuple[float, psutil.Process]] = []
        self.done: list[str] = []
        # Every process that the system ever had.
        self.seen: set[psutil.Process] = set()

    def strike(self) -> str:
        """One fault."""
        running = processes(self._up)
        self.seen |= set(running.values())
        for index, (kind, number) in enumerate(self._turn or self._shuffled(running)):
            names = [name for name in running if _kind(name) == kind]
            if names:
                self._turn.pop(index)
                name = self._random.choice(names)
                self._send(running[name], number)
                self.done.append(f"{number.name} {name}")
                return self.done[-1]
        self._turn.clear()
        return self.strike()

    def wait(self) -> None:
        """Pass the time to the next fault; processes that have been stopped for long enough continue."""
        until = time.monotonic() + self._random.uniform(*BETWEEN)
        while time.monotonic() < until:
            time.sleep(0.1)
            self.resume(time.monotonic())

    def resume(self, now: float = float("inf")) -> None:
        """Continue what was stopped until ``now``."""
        for due, process in list(self._resumed):
            if due <= now:
                self._resumed.remove((due, process))
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    def _shuffled(self, running: Mapping[str, psutil.Process]) -> Iterator[tuple[str, signal.Signals]]:
        """A new turn: every fault of every kind of process that runs now."""
        kinds = sorted({_kind(name) for name in running})
        faults = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
        self._turn = [(kind, number) for kind in kinds for number in faults if kind != OWN or number == signal.SIGSTOP]
        self._random.shuffle(self._turn)
        return iter(list(self._turn))

    def _send(self, process: psutil.Process, number: signal.Signals) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            process.send_signal(number)
            if number == signal.SIGSTOP:
                self._resumed.append((time.monotonic() + self._random.uniform(*STOPPED) * self._patience, process))


def _kind(name: str) -> str:
    """The kind of a process: guards are one kind, and so are the processes that a program has started."""
    if name.startswith("guard of "):
        return "guard"
    program, apostrophe, _ = name.partition("'s ")
    return f"{program}'s processes" if apostrophe else program.partition("-")[0] if program != "nats-server" else program
