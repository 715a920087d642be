"""The port for probes and metrics: ``/livez`` and ``/readyz`` beside Prometheus's ``/metrics``, always without TLS.

A kubelet's gRPC probe cannot send a client certificate, and these answers are not secret.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any
from wsgiref.simple_server import make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer, WSGIRequestHandler

from sfumato.errors import InvalidInput

BEAT = 1.0
"""Seconds between heartbeats of a process's event loop."""
SILENCE = 60.0
"""Seconds without a heartbeat after which the loop counts as stuck; an import or a garbage collection may take several seconds."""


@dataclass
class Probes:
    """A process's state. A process without an event loop is alive."""

    ready: bool = False
    _beaten: float | None = field(default=None, init=False)

    async def beat(self) -> None:
        """Record heartbeats of the event loop until cancelled."""
        try:
            while True:
                self._beaten = time.monotonic()
                await asyncio.sleep(BEAT)
        finally:
            self._beaten = None

    @property
    def alive(self) -> bool:
        """Whether the event loop is not stuck."""
        beaten = self._beaten
        return beaten is None or time.monotonic() - beaten < SILENCE


PROBES = Probes()
"""The state of this process."""


@contextmanager
def listening(address: str, probes: Probes) -> Iterator[int]:
    """Answer at ``host:port`` within a ``with`` block; yields the port.

    Raises:
        InvalidInput: the address cannot be listened on.
    """
    host, _, port = address.rpartition(":")
    try:
        server = make_server(host.strip("[]") or "127.0.0.1", int(port), _app(probes), _server(host), handler_class=_Silent)
    except (OSError, ValueError, OverflowError) as error:
        hint = "Set SFUMATO_METRICS_ADDRESS to a free host:port, or to nothing."
        raise InvalidInput("metrics_address", f"{address} cannot be listened on ({error}).", hint=hint) from error
    thread = Thread(target=server.serve_forever, name="probes", daemon=True)
    thread.start()
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Silent(WSGIRequestHandler):
    """Logs no requests: probes come every few seconds."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _server(host: str) -> type[ThreadingWSGIServer]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return type("_Server", (ThreadingWSGIServer,), {"address_family": family})


def _app(probes: Probes) -> Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]:
    metrics = make_wsgi_app()

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        held = {"/livez": probes.alive, "/readyz": probes.ready and probes.alive}.get(environ["PATH_INFO"])
        if held is None:
            return metrics(environ, start_response)
        start_response("200 OK" if held else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"ok\n" if held else b"no\n"]

    return app
