"""The whole system for chaos tests: every service as a process of its own that can be killed, paused or cut off, and is started again."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sfumato.runtime.bus.nats_server import NatsServer
from tests.chaos.proxy import DroppingProxy

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
ACK_WAIT = 5.0
"""Seconds after which a silent worker's task is given to another: short, so that a pause is soon longer."""
READY = 120.0

PARTS = {
    "generator-1": "services.generator.app",
    "generator-2": "services.generator.app",
    "grounding": "services.grounding.app",
    "scoring": "services.scoring.app",
    "trainer": "services.trainer.app",
    "orchestrator-1": "orchestrator.app",
    "orchestrator-2": "orchestrator.app",
}
WORKERS = [name for name in PARTS if not name.startswith("orchestrator")]


@dataclass
class Part:
    """One process of the system, at an address that stays its own."""

    name: str
    module: str
    environment: dict[str, str]
    log: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            line = [sys.executable, "-m", self.module]
            self.process = subprocess.Popen(line, env=self.environment, cwd=ROOT, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def serves(self) -> bool:
        """Whether it says of itself that it is healthy."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                health: Any = health_pb2_grpc.HealthStub(channel)  # its types know no calls
                answer = health.Check(health_pb2.HealthCheckRequest(service=""), timeout=2)
            except grpc.RpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING


@dataclass
class Whole:
    """nats-server behind a proxy, and every part; all of it ends with the test. Use it in a ``with`` block."""

    folder: Path
    parts: dict[str, Part] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Whole:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.server = self._stack.enter_context(NatsServer(self.folder / "nats", port=free_port()))
        self.proxy = self._stack.enter_context(DroppingProxy(int(self.server.url.rpartition(":")[2])))
        self._stack.callback(self._end)
        for name, module in PARTS.items():
            port = free_port()
            self.parts[name] = Part(name, module, self._environment(port), self.folder / f"{name}.log", port)
            self.parts[name].start()
        deadline = time.monotonic() + READY
        for part in self.parts.values():
            while not part.serves():
                assert part.process is not None and part.process.poll() is None, part.log.read_text()[-4000:]
                assert time.monotonic() < deadline, f"{part.name} is not healthy: {part.log.read_text()[-4000:]}"
                time.sleep(0.2)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        for part in self.parts.values():
            part.kill()

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def bus_url(self) -> str:
        return f"nats://{HOST}:{self.proxy.port}"

    def _environment(self, port: int) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "SFUMATO_ARTIFACTS": str(self.artifacts),
            "SFUMATO_RUNS": str(self.folder / "runs"),
            "SFUMATO_GRPC_ADDRESS": f"{HOST}:{port}",
            "SFUMATO_BUS_URL": self.bus_url,
            "SFUMATO_BUS_ACK_WAIT": str(ACK_WAIT),
            "SFUMATO_GROUNDING_BACKEND": "transformers",
            "SFUMATO_BUS_LOOK": "1.0",
            "SFUMATO_BUS_RETRY_DELAY": "0.2",
            # The beginning of each piece of work is told at this level.
            "SFUMATO_LOG_LEVEL": "DEBUG",
            "SFUMATO_LOG_FORMAT": "json",
        }

    def logs(self) -> str:
        """What all parts said, one after the other."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Killer:
    """Faults drawn from a seed; what it takes away it gives back, as a cluster would."""

    def __init__(self, system: Whole, seed: int) -> None:
        self._system = system
        self._random = random.Random(seed)
        self.faults: list[str] = []
        # At most this many tasks were in the hands of those that were struck; the wipe at the start strikes all.
        self.in_flight = len(WORKERS)

    def strike(self) -> None:
        """One fault: each kind once first, then by chance."""
        kinds: list[Callable[[], str]] = [self._kill_worker, self._kill_orchestrator, self._pause, self._drop, self._kill_server]
        kind = kinds[len(self.faults)] if len(self.faults) < len(kinds) else self._random.choice(kinds)
        self.faults.append(kind())

    def wait(self) -> None:
        """Some moments in which the run gets on."""
        time.sleep(self._random.uniform(0.5, 4.0))

    def _kill_worker(self) -> str:
        self.in_flight += 1
        return self._kill(WORKERS)

    def _kill_orchestrator(self) -> str:
        return self._kill([name for name in PARTS if name not in WORKERS])

    def _kill(self, names: list[str]) -> str:
        part = self._system.parts[self._random.choice(names)]
        part.kill()
        part.start()
        return f"kill {part.name}"

    def _pause(self) -> str:
        part = self._system.parts[self._random.choice(list(PARTS))]
        part.signal(signal.SIGSTOP)
        time.sleep(1.3 * ACK_WAIT)
        part.signal(signal.SIGCONT)
        self.in_flight += part.name in WORKERS
        return f"pause {part.name}"

    def _drop(self) -> str:
        self.in_flight += len(WORKERS)
        return f"drop {self._system.proxy.drop()} connections"

    def _kill_server(self) -> str:
        self._system.server.kill()
        time.sleep(self._random.uniform(0, 1))
        self._system.server.start()
        self.in_flight += len(WORKERS)
        return "kill nats-server"
