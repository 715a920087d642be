"""A service's own program as a process, for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).parents[2]
SECONDS = 120.0


class Program:
    """A service's process: its log as it comes, and the port it listens on."""

    def __init__(self, service: str, environment: Mapping[str, str]) -> None:
        given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SFUMATO_GRPC_ADDRESS": "127.0.0.1:0"}
        line = [sys.executable, "-m", f"services.{service}.app"]
        self.process = subprocess.Popen(line, env=os.environ | given | dict(environment), stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.port = 0
        self._listening = threading.Event()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.log.append(line)
                found = re.search(r"Listening on port (\d+)", line)
                if found:
                    self.port = int(found[1])
                    self._listening.set()
        self._listening.set()

    def channel(self) -> grpc.Channel:
        """A channel, as soon as it listens."""
        assert self._listening.wait(SECONDS) and self.port, "".join(self.log)
        return grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status once it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(SECONDS)
        self._reading.join()
        return status


@contextmanager
def program(service: str, artifacts: Path, **environment: str) -> Iterator[tuple[Program, grpc.Channel]]:
    """The process and a channel to it; it has loaded, and health has told so."""
    running = Program(service, {"SFUMATO_ARTIFACTS": str(artifacts), "SFUMATO_GRPC_TOKEN": "right"} | environment)
    try:
        with running.channel() as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)  # its types know no calls
            for answer in health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS):
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
            yield running, channel
    finally:
        running.end(signal.SIGKILL)
