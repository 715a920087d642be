"""A whole system for tests of the orchestrator: a real bus, replicas as processes, workers whose answers are made up."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sfumato.runtime.client import channel
from sfumato.v1 import orchestrator_pb2 as contract
from sfumato.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from tests.unit.bus_system import ROOT, System, running

SERVICES = ("generator", "grounding", "scoring", "trainer")
HANDLERS = "tests.unit.orchestrator.rehearsal"
SECONDS = 60.0
"""After which a test gives up waiting."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass
class Replica:
    """A process of the orchestrator."""

    address: str
    process: subprocess.Popen[bytes]
    stub: OrchestratorServiceStub

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """As a deployment does."""
        self.process.send_signal(signal.SIGTERM)


@dataclass
class Orchestration:
    """The system, and its replicas; all end with the test."""

    system: System
    stack: ExitStack
    replicas: list[Replica] = field(default_factory=list)

    def replica(self, **settings: object) -> Replica:
        """Start a replica; it answers when this returns."""
        address = f"127.0.0.1:{free_port()}"
        environment = self.system.environment() | {"SFUMATO_GRPC_ADDRESS": address, "SFUMATO_GRPC_GRACE": "5"}
        environment |= {"SFUMATO_ORCHESTRATOR_LEASE": "2", "SFUMATO_ORCHESTRATOR_TELL": "0.02"}
        environment |= {f"SFUMATO_ORCHESTRATOR_{name.upper()}": str(value) for name, value in settings.items()}
        with (self.system.folder / "workers.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", "orchestrator.app"], env=environment, stdout=log, stderr=log, cwd=ROOT)
        self.system.workers.append(process)
        ready = self.stack.enter_context(channel(address))
        stub = OrchestratorServiceStub(ready)
        self.replicas.append(Replica(address, process, stub))
        self.until(lambda: _answers(stub, process), "no replica")
        return self.replicas[-1]

    def work(self, handlers: str = HANDLERS) -> None:
        """Start a worker of every service."""
        for service in SERVICES:
            self.system.worker(service, handlers)

    def until(self, done: object, what: str) -> None:
        """Wait for something to be so."""
        give_up = time.monotonic() + SECONDS
        while not done():  # pyright: ignore[reportCallIssue]
            assert time.monotonic() < give_up, f"{what}\n{self.system.log()[-4000:]}"
            time.sleep(0.05)

    def becomes(self, stub: OrchestratorServiceStub, name: str, *states: str) -> contract.Run:
        """Wait until a run is in one of these states."""
        found: list[contract.Run] = []

        def there() -> bool:
            found[:] = [stub.Get(contract.OrchestratorServiceGetRequest(run_id=name)).run]
            return state(found[0]) in states

        self.until(there, f"{name} never was {states}")
        return found[0]


def state(run: contract.Run) -> str:
    return contract.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()


def _answers(stub: OrchestratorServiceStub, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the replica ended"
    try:
        stub.List(contract.OrchestratorServiceListRequest())
    except grpc.RpcError:
        return False
    return True


@contextmanager
def orchestration(folder: Path) -> Iterator[Orchestration]:
    """A bus and nothing else yet."""
    with ExitStack() as stack, running(folder) as system:
        yield Orchestration(system, stack)


def request(name: str = "rehearsal", **sections: str) -> contract.SubmitRequest:
    """A small run; ``sections`` are YAML by name, over the defaults here."""
    text = {
        "name": name,
        "batch": "4",
        "prompts": "{count: 10, seed: 0}",
        "evaluate": "{count: 6, seed: 900}",
        "stop": "{max_iterations: 3, min_pairs: 1}",
        "score": "{metrics: [clip, aesthetic]}",
        "ground": "{backend: transformers}",
    }
    spec = "".join(f"{key}: {value}\n" for key, value in (text | sections).items())
    lines = {"train": [f"train picture {k}" for k in range(10)], "heldout": [f"heldout picture {k}" for k in range(6)]}
    inputs = [contract.InputSet(name=name, lines=lines[name]) for name in lines]
    return contract.SubmitRequest(spec=spec, inputs=inputs)
