"""A server of a vision-language model that says what a test wrote down for it: real HTTP on this machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer word for word. ``drop``: the connection is closed instead; ``hang``: seconds before anything happens."""

    status: int = 200
    body: bytes = b"{}"
    drop: bool = False
    hang: float = 0.0


def completion(text: str | None) -> Reply:
    """A chat completion that says ``text``."""
    return Reply(body=json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())


@dataclass
class ScriptedVlm:
    """What it says, in order, then only 418; and what it was asked. Texts are wrapped in a chat completion."""

    url: str
    script: list[str | Reply] = field(default_factory=list)
    models: list[str] = field(default_factory=lambda: ["served"])
    key: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)

    def next(self, request: dict[str, Any]) -> Reply:
        self.requests.append(request)
        said = self.script.pop(0) if self.script else Reply(418, b"nothing more is written down")
        return completion(said) if isinstance(said, str) else said

    def questions(self) -> list[str]:
        """The last text of every request."""
        return [request["messages"][-1]["content"][-1]["text"] for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    vlm: ScriptedVlm

    def do_GET(self) -> None:
        self._send(Reply(body=json.dumps({"object": "list", "data": [{"id": name} for name in self.vlm.models]}).encode()))

    def do_POST(self) -> None:
        self._send(self.vlm.next(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

    def _send(self, reply: Reply) -> None:
        if self.vlm.key and self.headers["Authorization"] != f"Bearer {self.vlm.key}":
            reply = Reply(401, b'{"error": "Unauthorized"}')
        time.sleep(reply.hang)
        if reply.drop or reply.hang:
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on standard error."""


@contextmanager
def scripted_vlm() -> Iterator[ScriptedVlm]:
    """A server on a free port of this machine for the length of a ``with`` block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        scripted = ScriptedVlm(f"http://127.0.0.1:{server.server_port}")
        server.RequestHandlerClass = type("Handler", (_Handler,), {"vlm": scripted})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield scripted
        finally:
            server.shutdown()
            thread.join()
