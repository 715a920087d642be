"""What browsers and proxies between a client and the service need: CORS, comments in quiet streams, and requests of every kind."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.integration.inference.serving import Serving, registry_with_a_version, serving
from tests.integration.programs import SECONDS

PAGE = "https://studio.example.com"
KEY = "schlüssel"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("browsers")
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    (folder / "keys.json").write_text("\ufeff" + json.dumps([{"name": "web", "sha256": digest}]), encoding="utf-8")
    values = {"SFUMATO_INFERENCE_CORS": f"{PAGE}, http://localhost:5173", "SFUMATO_INFERENCE_KEEP_ALIVE": "0.05"}
    keys = str(folder / "keys.json")
    with registry_with_a_version(folder) as (registry, version), serving(registry, version, "--keys", keys, **values) as running:
        yield running


def ask(served: Serving, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=SECONDS)
    try:
        connection.putrequest(method, path)
        for name, value in headers.items():
            connection.putheader(name, value.encode())
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


AUTHORIZED = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def test_a_browser_may_call_from_a_listed_origin_and_reads_errors_too(served: Serving) -> None:
    question = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    status, headers, _ = ask(served, "OPTIONS", "/v1/images/generations", question)
    assert status == 200 and headers["access-control-allow-origin"] == PAGE and headers["access-control-allow-credentials"] == "true"
    assert "POST" in headers["access-control-allow-methods"] and "x-stainless-os" in headers["access-control-allow-headers"]
    for path, more, body, expected in (
        ("/v1/models", {"Authorization": f"Bearer {KEY}"}, None, 200),
        ("/v1/models", {}, None, 401),
        ("/v1/nothing", {}, None, 404),
        ("/v1/images/generations", AUTHORIZED, b'{"prompt": 7}', 400),
    ):
        status, headers, answer = ask(served, "POST" if body else "GET", path, {"Origin": PAGE} | more, body)
        assert status == expected and headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in headers["access-control-expose-headers"].lower() and json.loads(answer)
    for origin in ("https://elsewhere.example.com", "null", "http://studio.example.com"):
        status, headers, _ = ask(served, "OPTIONS", "/v1/images/generations", question | {"Origin": origin})
        assert status == 400 and "access-control-allow-origin" not in headers
        assert "access-control-allow-origin" not in ask(served, "GET", "/v1/models", AUTHORIZED | {"Origin": origin})[1]


def test_a_key_with_letters_beyond_ascii_is_refused_or_known_and_never_an_error_of_the_service(served: Serving) -> None:
    assert ask(served, "GET", "/v1/models", {"Authorization": f"Bearer {KEY}"})[0] == 200
    for shown in ("Bearer schlüssel2", "Bearer ключ", "Bearer \U0001f511", "ü", "Bearer"):
        status, _, answer = ask(served, "GET", "/v1/models", {"Authorization": shown})
        assert status == 401 and json.loads(answer)["error"]["code"] == "invalid_api_key"


def test_a_quiet_stream_sends_comments_and_ends_with_its_picture(served: Serving) -> None:
    body = {"prompt": "a moon", "stream": True, "n": 4, "num_inference_steps": 60}
    status, headers, answer = ask(served, "POST", "/v1/images/generations", AUTHORIZED, json.dumps(body).encode())
    assert status == 200 and headers["x-accel-buffering"] == "no" and headers["content-type"].startswith("text/event-stream")
    assert answer.startswith(b": keep-alive\n\n") and answer.count(b"event: image_generation.completed") == 4


def test_an_error_after_the_stream_began_is_an_event(served: Serving) -> None:
    body = {"prompt": "a moon " * 3000, "stream": True}
    status, headers, answer = ask(served, "POST", "/v1/images/generations", AUTHORIZED, json.dumps(body).encode())
    told = answer if status != 200 else answer.partition(b"event: error\ndata: ")[2]
    assert json.loads(told)["error"]["param"] == "prompt" and (status == 400 or headers["content-type"].startswith("text/event-stream"))


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/models/", "/v1/images/generations/", "/v1/images/generations", "/readyz"])
def test_every_method_and_path_has_an_answer(served: Serving, method: str, path: str) -> None:
    status, _, answer = ask(served, method, path, {"Authorization": f"Bearer {KEY}"})
    assert status < 500 and b"Traceback" not in answer


def test_old_and_slow_clients_are_answered(served: Serving) -> None:
    body = b'{"prompt": "a moon", "num_inference_steps": 1}'
    fields = f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n".encode()
    old = b"POST /v1/images/generations HTTP/1.0\r\n" + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert _raw(served, [old]).split(b"\r\n")[0].endswith(b" 200 OK")
    chunked = [b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n" + fields + b"\r\n"]
    chunked += [b"1\r\n%c\r\n" % byte for byte in body]
    assert b'"b64_json"' in _raw(served, [*chunked, b"0\r\n\r\n"])
    bare = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + fields + b"\r\n"
    assert _raw(served, [bare]).split(b"\r\n")[0].endswith(b" 400 Bad Request")


def _raw(served: Serving, pieces: list[bytes]) -> bytes:
    """The answer to bytes that are sent one after the other."""
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=SECONDS) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer
