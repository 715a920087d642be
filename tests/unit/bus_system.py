"""A real bus for tests: a nats-server, worker processes that can be killed and stopped, and what they need to find each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus.nats_server import NatsServer
from sfumato.runtime.settings import BusSettings

ROOT = Path(__file__).parents[2]
HANDLERS = "tests.unit.orchestrator.workers"
QUICK = {"ack_wait": 2.0, "retry_delay": 0.05, "look": 0.5, "patience": 30.0, "grace": 10.0}
"""Everything that waits, waits briefly."""


@dataclass
class System:
    """A server, a store, and the workers that were started; all of them end with the test."""

    folder: Path
    server: NatsServer
    settings: BusSettings
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(str(self.folder / "artifacts"))

    def environment(self) -> dict[str, str]:
        """What a process must know to belong to the system."""
        bus = {
            f"SFUMATO_BUS_{name.upper()}": str(value)
            for name, value in self.settings.model_dump(exclude={"token", "ca", "password"}).items()
        }
        bus["SFUMATO_BUS_PASSWORD"] = self.settings.password.get_secret_value()
        store = {"SFUMATO_ARTIFACTS": str(self.folder / "artifacts"), "TEST_LEDGER": str(self.ledger)}
        return os.environ | bus | store | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    @property
    def ledger(self) -> Path:
        """Where handlers write down what they really did."""
        return self.folder / "ledger"

    def done(self) -> list[str]:
        """Every piece of work that was done, as often as it was."""
        return self.ledger.read_text().split() if self.ledger.exists() else []

    def worker(self, service: str = "echo", handlers: str = HANDLERS, url: str = "") -> subprocess.Popen[bytes]:
        """Start a worker process; at another server than the system's own, where one is given."""
        environment = self.environment() | ({"SFUMATO_BUS_URL": url} if url else {})
        line = [sys.executable, "-m", "sfumato.runtime.bus.worker", "--service", service, "--handlers", handlers]
        with (self.folder / "workers.log").open("ab") as log:
            process = subprocess.Popen(line, env=environment, stdout=log, stderr=log, cwd=ROOT)
        self.workers.append(process)
        return process

    def log(self) -> str:
        return (self.folder / "workers.log").read_text()

    def transport(self) -> JetStreamTransport:
        return JetStreamTransport(self.settings, self.artifacts)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Have all that was started end with a ``with`` block."""
        try:
            yield
        finally:
            for process in self.workers:
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.kill()
                process.wait()


@contextmanager
def running(folder: Path, workers: int = 0, **settings: float | int | str) -> Iterator[System]:
    """A system with so many workers of the service `echo`."""
    with NatsServer(folder / "nats") as server:
        system = System(folder, server, BusSettings(**{"url": server.url, **QUICK, **settings}))  # pyright: ignore[reportArgumentType]
        with system.ending():
            for _ in range(workers):
                system.worker()
            yield system
