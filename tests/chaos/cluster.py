"""A cluster of three nats-servers, of which one may be killed and one be cut off from the others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfumato.runtime.bus.nats_server import HOST, Cluster, NatsServer

UNUSED = (1, 2)
"""Ports without a listener. (Each server needs the addresses of two others, and only connects to these.)"""


class Link:
    """A way to a port that may be blocked: what is sent meanwhile arrives when it is open again, as in a network that fails."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def block(self) -> None:
        """Let nothing through, either way."""
        self._open.clear()

    def unblock(self) -> None:
        """Let everything through again."""
        self._open.set()

    def close(self) -> None:
        """End it."""
        self.unblock()
        self._listener.close()
        for end in self._sockets:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection((HOST, self._target))
            except OSError:
                near.close()  # no listener
                continue
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with closing(source), closing(target):
            try:
                while data := source.recv(65536):
                    self._open.wait()
                    target.sendall(data)
            except OSError:
                return


@dataclass(frozen=True)
class Three:
    """Three servers that keep every stream; the last is reached by the others through ``links`` only."""

    servers: tuple[NatsServer, NatsServer, NatsServer]
    links: tuple[Link, Link]

    @property
    def urls(self) -> str:
        return ",".join(server.url for server in self.servers)

    def cut(self) -> None:
        """Cut the last one off from the others, but not from its clients."""
        for link in self.links:
            link.block()

    def mend(self) -> None:
        for link in self.links:
            link.unblock()


@contextmanager
def three(folder: Path) -> Iterator[Three]:
    """A cluster for the length of a ``with`` block."""
    first, second, last = _free_ports(3)
    with ExitStack() as stack:
        links = (stack.enter_context(closing(Link(last))), stack.enter_context(closing(Link(last))))
        # The links are the only way to the last, or from it.
        places = [
            Cluster("first", first, [UNUSED[0], links[0].port], advertised=UNUSED[0]),
            Cluster("second", second, [first, links[1].port], advertised=UNUSED[0]),
            Cluster("last", last, UNUSED, advertised=UNUSED[0]),
        ]
        servers = [stack.enter_context(NatsServer(folder / place.server, cluster=place)) for place in places]
        yield Three((servers[0], servers[1], servers[2]), links)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        return [stack.enter_context(socket.create_server((HOST, 0))).getsockname()[1] for _ in range(count)]
