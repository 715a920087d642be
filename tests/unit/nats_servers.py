"""A real nats-server with any configuration: small limits, accounts and users, no JetStream."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfumato.runtime.bus.nats_server import binary


def allow(folder: Path, before: str, now: str) -> None:
    """Change the configuration of the server of a folder while it runs."""
    file = folder / "small.conf"
    changed = file.read_text().replace(_with_store(folder, before), _with_store(folder, now))
    assert changed != file.read_text()
    file.write_text(changed)
    os.kill(int((folder / "small.pid").read_text()), signal.SIGHUP)


def _with_store(folder: Path, config: str) -> str:
    return config.replace("STORE", json.dumps(str(folder / "store")))


@contextmanager
def nats(folder: Path, config: str) -> Iterator[str]:
    """The address of a server with this configuration, in which ``STORE`` stands for a folder of JetStream's files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "small.conf"
    file.write_text(f"listen: 127.0.0.1:{port}\n" + _with_store(folder, config))
    with (folder / "small.log").open("ab") as log:
        server = subprocess.Popen([binary(), "--config", str(file)], stdout=log, stderr=log)
    (folder / "small.pid").write_text(str(server.pid))
    try:
        for _ in range(400):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (folder / "small.log").read_text()
            time.sleep(0.05)
        yield f"nats://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
