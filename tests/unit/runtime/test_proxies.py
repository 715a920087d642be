"""Proxies: a real one that records what passes it, and the rules of httpx."""

from __future__ import annotations

import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.proxies import grpc_options, is_inside, proxy_of
from tests.unit.runtime.test_client import serving
from tests.unit.services.registry.servers import s3

ROOT = Path(__file__).parents[3]
VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


class RecordingProxy(socketserver.ThreadingTCPServer):
    """Writes down the first line of every request, and passes CONNECT on to ``target`` whatever host it names."""

    daemon_threads = True

    def __init__(self, target: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.seen: list[str] = []
        self.target = target

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Passing(socketserver.StreamRequestHandler):
    """One connection through the proxy."""

    def handle(self) -> None:
        proxy = self.server
        assert isinstance(proxy, RecordingProxy)
        line = self.rfile.readline().decode("latin-1").strip()
        while self.rfile.readline().strip():
            pass
        proxy.seen.append(line)
        if not line.startswith("CONNECT ") or not proxy.target:
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        host, _, port = proxy.target.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            ends = {there: self.connection, self.connection: there}
            while True:
                for ready in select.select(list(ends), [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    ends[ready].sendall(data)


@contextmanager
def recording(target: str = "") -> Iterator[RecordingProxy]:
    with RecordingProxy(target) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


def environment(proxy: str, **more: str) -> dict[str, str]:
    """The variables of a process behind a proxy; the process is new, because libraries read them once."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | dict.fromkeys(VARIABLES, proxy) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def python(script: str, variables: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CALL = """
import sys
from sfumato.runtime.client import calling, channel
from sfumato.runtime.settings import ClientSettings
from sfumato.v1.artifacts_pb2 import StatRequest
from sfumato.v1.artifacts_pb2_grpc import ArtifactServiceStub
with channel({address!r}, ClientSettings()) as opened, calling({address!r}):
    print(ArtifactServiceStub(opened).Stat(StatRequest(digest="0" * 64)).held)
"""


def test_calls_on_this_machine_do_not_go_through_the_proxy(tmp_path: Path) -> None:
    with serving(ArtifactStore(str(tmp_path))) as (address, _), recording() as proxy:
        port = address.rpartition(":")[2]
        for host in ("localhost", "127.0.0.1", socket.gethostname()):
            if host == socket.gethostname() and not _is_this_machine(host):
                continue
            assert python(CALL.format(address=f"{host}:{port}"), environment(proxy.url)) == "False"
        assert proxy.seen == []


def test_calls_to_other_hosts_go_through_the_proxy_unless_no_proxy_names_them(tmp_path: Path) -> None:
    with serving(ArtifactStore(str(tmp_path))) as (address, _), recording(address) as proxy:
        # Only the proxy knows this name.
        script = CALL.format(address="painter.example.com:7101")
        assert python(script, environment(proxy.url)) == "False"
        assert proxy.seen == ["CONNECT painter.example.com:7101 HTTP/1.1"]
        capitals = environment("") | {"HTTPS_PROXY": proxy.url, "https_proxy": ""}
        assert python(script, {name: value for name, value in capitals.items() if value}) == "False"
        assert len(proxy.seen) == 2
        body = script.strip().replace("\n", "\n    ")
        refused = f"try:\n    {body}\nexcept Exception as error:\n    print(error)"
        assert "does not answer" in python(refused, environment(proxy.url, no_proxy="example.com"))
        assert len(proxy.seen) == 2


def test_a_bucket_of_this_machine_is_not_asked_for_through_the_proxy() -> None:
    script = "from sfumato.runtime.artifacts import ArtifactStore\nstore = ArtifactStore('s3://pictures/x')\nprint(store.get(store.put(b'paint')))"
    with s3("pictures") as variables, recording() as proxy:
        assert python(script, environment(proxy.url, **variables)) == "b'paint'"
        assert proxy.seen == []


def test_a_model_server_of_this_machine_is_asked_directly_whatever_the_proxys_kind() -> None:
    script = """
from services.grounding.http_backend import model_served
from sfumato.errors import SfumatoError
for url in ("http://127.0.0.1:9", "http://vlm:9", "http://vlm.example.com:9"):
    try:
        model_served(url, ["vista"])
    except SfumatoError as error:
        print(error.message)
"""
    with recording() as proxy:
        told = python(script, environment(proxy.url)).splitlines()
        assert "502" in told[2] and proxy.seen == ["GET http://vlm.example.com:9/v1/models HTTP/1.1"]
        assert ["does not answer" in line for line in told] == [True, True, False]
    told = python(script, environment("ftp://proxy:1")).splitlines()
    assert "does not answer" in told[0] and "proxy for vlm.example.com cannot be used" in told[2]


NAMES = "localhost LOCALHOST sub.localhost orchestrator nats.sfumato.svc nats.sfumato.svc.cluster.local."
ADDRESSES = "127.0.0.1 127.9.9.9 ::1 0.0.0.0 10.1.2.3 172.31.0.1 192.168.1.1 fd00::1 fe80::1%eth0"


@pytest.mark.parametrize("host", f"{NAMES} {ADDRESSES}".split())
def test_hosts_of_this_machine_and_of_a_cluster_are_inside(host: str) -> None:
    assert is_inside(host)


@pytest.mark.parametrize("host", ["example.com", "svc.example.com", "8.8.8.8", "2001:4860:4860::8888", "notlocalhost.org"])
def test_other_hosts_are_outside(host: str) -> None:
    assert not is_inside(host)


HOSTS = ["example.com", "www.example.com", "notexample.com", "example.com.org", "8.8.8.8", "8.8.8.80", "[2001:db9::1]", "a.b.example.com"]
EXCEPTIONS = [
    "", "*", "example.com", ".example.com", "example.com:8000", "8.8.8.8", "8.8.8.8:8000",
    "2001:db9::1", "http://example.com", "https://example.com", "all://www.example.com", "http://*.example.com", "EXAMPLE.com", "localhost",
    "org, example.com", " , ", "com", "x,*,y",
]  # fmt: skip


@pytest.mark.parametrize("exceptions", EXCEPTIONS)
def test_no_proxy_is_understood_as_httpx_understands_it(exceptions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://proxy.example.net:3128")
    monkeypatch.setenv("https_proxy", "proxy.example.net:3129")
    monkeypatch.setenv("no_proxy", exceptions)
    with httpx.Client() as client:
        for host in HOSTS:
            for url in (f"http://{host}", f"https://{host}/x", f"http://{host}:8000"):
                chosen = client._transport_for_url(httpx.URL(url))  # the only place where httpx says what it chose
                assert (proxy_of(url) is not None) == (chosen is not client._transport), (url, exceptions)


@pytest.mark.parametrize("exceptions", ["*.example.com", "*example.com", "www.example.com:80"])
def test_exceptions_that_httpx_ignores_are_understood(exceptions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example.net:3128")
    monkeypatch.setenv("no_proxy", exceptions)
    assert proxy_of("http://www.example.com") is None
    assert proxy_of("http://notexample.com") is not None


def test_an_exception_may_be_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example.net:3128")
    monkeypatch.setenv("no_proxy", "100.64.0.0/10,2001:db9::/32")
    assert proxy_of("https://100.65.1.1") is None and proxy_of("https://[2001:db9::5]:1") is None
    assert proxy_of("https://100.128.1.1") == "http://proxy.example.net:3128"


def test_grpc_takes_the_first_proxy_that_it_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "")
    assert grpc_options("a.example.com:1") == [("grpc.enable_http_proxy", 0)]
    monkeypatch.setenv("all_proxy", "socks5://p:1080")
    assert grpc_options("a.example.com:1") == [("grpc.enable_http_proxy", 0)]
    monkeypatch.setenv("all_proxy", "p:3128")
    assert ("grpc.http_proxy", "http://p:3128") in grpc_options("tls://a.example.com:1")
    monkeypatch.setenv("grpc_proxy", "http://q:1")
    assert ("grpc.http_proxy", "http://q:1") in grpc_options("dns:///a.example.com:1")
    assert grpc_options("unix:/tmp/x") == grpc_options("ipv4:127.0.0.1:50") == [("grpc.enable_http_proxy", 0)]


def _is_this_machine(host: str) -> bool:
    """Whether the name of this machine leads to it; the server listens on 127.0.0.1 only."""
    try:
        return socket.gethostbyname(host).startswith("127.")
    except OSError:
        return False
