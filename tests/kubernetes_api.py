"""A server that speaks the wire format of Kubernetes' API, and its kubeconfig; a subclass answers. `tests/cluster` has a real one."""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


class ApiServer(ThreadingHTTPServer):
    """A server on a free port of this machine, for objects of one namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.namespace = namespace
        self.lock = threading.Lock()

    @abstractmethod
    def answer(self, method: str, address: str, body: Any) -> tuple[int, Any]:
        """The status and the JSON for a request; ``address`` is the path with its query. Requests come from several threads."""


@contextmanager
def served(server: ApiServer, folder: Path) -> Iterator[Path]:
    """The kubeconfig that leads to the server, which answers within the block."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": server.namespace}}
    kubeconfig = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context], "current-context": "c"}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig | {"users": [{"name": "u", "user": {"token": "t"}}]}))
    try:
        yield path
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def _do(self) -> None:
        length, api = int(self.headers.get("Content-Length") or 0), self.server
        assert isinstance(api, ApiServer)
        status, found = api.answer(self.command, self.path, json.loads(self.rfile.read(length) or "null"))
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
