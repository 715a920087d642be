"""Tasks a second through submit, JetStream, worker and orchestrator, with a handler that returns at once.

    python -m benchmarks.bus --tasks 5000 --workers 1

`transport` counts the way there and back; `engine` a whole run of one stage by the engine, one sample a micro-batch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.engine import Each, Engine
from orchestrator.jetstream import JetStreamTransport
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.nats_server import NatsServer
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Manifest, Output, Task

HANDLERS = {"bench.nothing": lambda task, _: Output(list(task.items))}
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Numbers:
    """A state without meaning."""

    samples: tuple[int, ...]

    def with_samples(self, samples: tuple[int, ...]) -> Numbers:
        """Other samples."""
        return replace(self, samples=samples)


def task(run: str, items: tuple[int, ...]) -> Task:
    """A task of its own for every run, so that none is found done."""
    return Task(stage=run, kind="bench.nothing", items=items, params={"run": run}, model="none", model_reference="")


def by_transport(transport: JetStreamTransport, count: int, batch: int, run: str) -> float:
    """Samples a second from submit to next."""
    tasks = [task(run, tuple(range(start, start + batch))) for start in range(0, count * batch, batch)]
    started = time.perf_counter()
    for each in tasks:
        transport.submit(each)
    for _ in tasks:
        transport.next()
    return count * batch / (time.perf_counter() - started)


def by_engine(transport: JetStreamTransport, artifacts: ArtifactStore, count: int) -> float:
    """Samples a second of a run with one stage and one sample a task."""

    def made(_: None, __: Numbers, samples: tuple[int, ...]) -> Task:
        return task("engine", samples)

    def taken(_: tuple[int, ...], done: Manifest) -> tuple[int, ...]:
        return tuple(done.values)

    started = time.perf_counter()
    Engine(None, 1, transport, artifacts, lambda _: None).run((Each("nothing", "bench", made, taken),), Numbers(tuple(range(count))))
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sync", default="10s", help="sync_interval of nats-server: always, or a time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder) / "nats", sync=options.sync) as server:
        artifacts = ArtifactStore(f"{folder}/artifacts")
        environment = os.environ | {"SFUMATO_BUS_URL": server.url, "SFUMATO_ARTIFACTS": f"{folder}/artifacts", "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-m", "sfumato.runtime.worker", "--service", "bench", "--handlers", "benchmarks.bus"]
        workers = [subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL) for _ in range(options.workers)]
        try:
            with JetStreamTransport(BusSettings(url=server.url), artifacts) as transport:
                by_transport(transport, 500, 1, "warm")
                for batch in (1, 8):
                    rate = by_transport(transport, options.tasks, batch, f"batches of {batch}")
                    print(f"transport, batches of {batch}: {rate:.0f} samples/s")
                print(f"engine, batches of 1: {by_engine(transport, artifacts, options.tasks):.0f} samples/s")
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait(30)


if __name__ == "__main__":
    main()
