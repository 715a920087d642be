"""Processes and ports of this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import ExitStack

import psutil

HOST = "127.0.0.1"


def process_started(pid: int) -> float:
    """When a process was started, in seconds since the epoch; 0 if it does not exist."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return 0.0


def free_ports(wished: Iterable[int]) -> list[int]:
    """A port for each of ``wished``: that port if it is free, otherwise (and for 0) another free one."""
    with ExitStack() as held:  # all held at the same time, so that no port is returned twice
        return [_port(held, wish) for wish in wished]


def _port(held: ExitStack, wish: int) -> int:
    for port in (wish, 0):
        probe = held.enter_context(socket.socket())
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen()  # a bound port refuses a second bind only if it listens
        except OSError:
            continue
        return int(probe.getsockname()[1])
    raise OSError("no port of this machine is free")
