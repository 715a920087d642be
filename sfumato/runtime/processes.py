"""What the machine's processes are asked and told: since when one lives, that a child is to end with its parent, which port is free."""

from __future__ import annotations

import ctypes
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import ExitStack

import psutil

HOST = "127.0.0.1"
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)
# Looked up here: a child between fork and exec must not.
_LIBC = ctypes.CDLL(None)


def process_started(pid: int) -> float:
    """When a process was started, in seconds of the epoch; 0 where there is none."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return 0.0


def dies_with_starter() -> None:
    """Run in a child before its program: when whoever started it is killed outright, Linux ends the child too."""
    if sys.platform == "linux":
        _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def free_ports(wished: Iterable[int]) -> list[int]:
    """A port of this machine for each wish: the port itself where nobody listens there, else (and for 0) a free one."""
    with ExitStack() as held:  # all at once, so that none is given twice
        return [_port(held, wish) for wish in wished]


def _port(held: ExitStack, wish: int) -> int:
    for port in (wish, 0):
        probe = held.enter_context(socket.socket())
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen()  # a second probe is refused only by one that listens
        except OSError:
            continue
        return int(probe.getsockname()[1])
    raise OSError("no port of this machine is free")
