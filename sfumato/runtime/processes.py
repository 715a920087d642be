"""This machine's processes and ports: since when one lives, which one is free."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import ExitStack

import psutil

HOST = "127.0.0.1"


def process_started(pid: int) -> float:
    """When a process was started, in seconds of the epoch; 0 where there is none."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return 0.0


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
