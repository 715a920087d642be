"""Tasks a second through submit, JetStream, worker, artifact store and back to the run, with an engine that returns at once.

    python -m benchmarks.bus [--tasks 5000] [--workers 1] [--sync 10s]

For micro-batches of 1, 8 and 64 samples: tasks and samples a second, and the processor seconds of all processes. `raw` is the baseline of
the same run: the same messages by nats-py alone (published, pulled, answered, acknowledged), without tasks, results, manifests or a
store; `to_raw` is our rate over its. `engine` is a whole run of one stage, one sample a task. Other load on the machine reduces the
rates; the processor seconds per task do not depend on it, and `two_cores` is the rate that they allow on two idle cores, of which a
Python process uses at most one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nats
import psutil
from nats.errors import TimeoutError as NatsTimeout
from nats.js import api

from orchestrator.engine.engine import Engine
from orchestrator.engine.stages import PerBatch
from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import encoded
from sfumato.runtime.bus.nats_server import NatsServer
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Manifest, Output, Task

HANDLERS = {"bench.nothing": lambda task, _: Output(list(task.items))}
ROOT = Path(__file__).parents[1]
BATCHES = (1, 8, 64)
CORES = 2
# The baseline's window and handful are ours.
WINDOW, HANDFUL = BusSettings().window, 64


@dataclass(frozen=True)
class Numbers:
    """A minimal state."""

    samples: Sequence[int]

    def with_samples(self, samples: Sequence[int]) -> Numbers:
        """Other samples."""
        return replace(self, samples=samples)


def task(run: str, items: tuple[int, ...]) -> Task:
    """A distinct task for every run, so that none is done already."""
    return Task(stage=run, kind="bench.nothing", items=items, params={"run": run}, model="none", model_reference="")


def tasks(count: int, batch: int, run: str) -> list[Task]:
    """So many tasks of so many samples."""
    return [task(run, tuple(range(start, start + batch))) for start in range(0, count * batch, batch)]


class Clock:
    """The processor seconds of the system's processes: this one, the server, and the workers."""

    def __init__(self, server: NatsServer, workers: list[subprocess.Popen[bytes]]) -> None:
        assert server.process is not None
        self._all = {
            "run": [os.getpid()],
            "nats-server": [child.pid for child in psutil.Process(server.process.pid).children()],
            "worker": [process.pid for process in workers],
        }

    def measure(self, work: Callable[[], None], count: int, batch: int) -> dict[str, Any]:
        """Rates of ``work``, which does ``count`` tasks of ``batch`` samples."""
        before, started = self._burned(), time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        burned = {name: (now - before[name]) / count for name, now in self._burned().items()}
        # nats-server uses all cores; the run and each worker one.
        slowest = max(sum(burned.values()) / CORES, burned["run"], burned["worker"] / len(self._all["worker"]))
        return {
            "tasks_per_second": round(count / seconds),
            "samples_per_second": round(count * batch / seconds),
            "microseconds_of_processor_per_task": {name: round(1e6 * each) for name, each in burned.items()},
            "two_cores": {"tasks_per_second": round(1 / slowest), "samples_per_second": round(batch / slowest)},
        }

    def _burned(self) -> dict[str, float]:
        return {
            name: sum(times.user + times.system for times in (psutil.Process(pid).cpu_times() for pid in pids))
            for name, pids in self._all.items()
        }


def by_transport(transport: JetStreamTransport, work: list[Task]) -> None:
    """From submit to next."""
    for each in work:
        transport.submit(each)
    for _ in work:
        transport.next()


def by_engine(transport: JetStreamTransport, artifacts: ArtifactStore, count: int) -> None:
    """A run with one stage and one sample a task."""

    def made(_: None, __: Numbers, samples: tuple[int, ...]) -> Task:
        return task("engine", samples)

    def taken(_: tuple[int, ...], done: Manifest) -> tuple[int, ...]:
        return tuple(done.values)

    Engine(None, 1, transport, artifacts, lambda _: None).run((PerBatch("nothing", "bench", made, taken),), Numbers(tuple(range(count))))


async def raw_run(url: str, work: list[Task]) -> None:
    """The baseline's run: publish into a work queue, a window at a time, and wait for an answer to each."""
    client = await nats.connect(url)
    js = client.jetstream(publish_async_max_pending=4 * WINDOW)
    answers, free = 0, asyncio.Semaphore(WINDOW)
    done = asyncio.Event()

    async def answered(_: Any) -> None:
        nonlocal answers
        answers += 1
        free.release()
        if answers == len(work):
            done.set()

    await client.subscribe("raw.results", cb=answered)
    for each in work:
        await free.acquire()
        await js.publish_async(f"raw.tasks.{each.id}", encoded(each))
    await done.wait()
    await client.close()


async def raw_worker(url: str) -> None:
    """The baseline's worker: pull, answer, acknowledge."""
    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_stream(name="raw", subjects=["raw.tasks.*"], retention=api.RetentionPolicy.WORK_QUEUE)
    await js.add_stream(name="raw-results", subjects=["raw.results"])
    subscription = await js.pull_subscribe("raw.tasks.*", durable="raw", stream="raw")
    print("up", flush=True)
    while True:
        try:
            messages = await subscription.fetch(HANDFUL, timeout=1.0)
        except NatsTimeout:
            continue
        for kept in [await js.publish_async("raw.results", message.data[:200]) for message in messages]:
            await kept
        for message in messages:
            await message.ack()


@contextmanager
def processes(line: list[str], environment: dict[str, str], count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many of a program, for the length of a ``with`` block."""
    started = [
        subprocess.Popen([sys.executable, "-m", *line], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.communicate(timeout=30)


def main() -> None:
    """Measure and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sync", default="10s", help="sync_interval of nats-server: always, or a time")
    parser.add_argument("--raw-worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw_worker:
        return asyncio.run(raw_worker(options.raw_worker))
    report: dict[str, Any] = {"tasks": options.tasks, "workers": options.workers, "sync": options.sync, "batches": {}}
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder) / "nats", sync=options.sync) as server:
        artifacts = ArtifactStore(f"{folder}/artifacts")
        environment = os.environ | {"SFUMATO_BUS_URL": server.url, "SFUMATO_ARTIFACTS": f"{folder}/artifacts", "PYTHONPATH": str(ROOT)}
        line = ["sfumato.runtime.bus.worker", "--service", "bench", "--handlers", "benchmarks.bus"]
        with processes(line, environment, options.workers) as workers:
            clock = Clock(server, workers)
            with JetStreamTransport(BusSettings(url=server.url), artifacts) as transport:
                by_transport(transport, tasks(500, 1, "warm"))
                for batch in BATCHES:
                    work = tasks(options.tasks, batch, f"batches of {batch}")
                    row = clock.measure(lambda work=work: by_transport(transport, work), options.tasks, batch)
                    report["batches"][batch] = row
                report["engine"] = clock.measure(lambda: by_engine(transport, artifacts, options.tasks), options.tasks, 1)
        with processes(["benchmarks.bus", "--raw-worker", server.url], environment, options.workers) as workers:
            for worker in workers:
                assert worker.stdout is not None and worker.stdout.readline() == b"up\n"
            asyncio.run(raw_run(server.url, tasks(500, 1, "warm")))
            work = tasks(options.tasks, 1, "raw")
            report["raw"] = Clock(server, workers).measure(lambda: asyncio.run(raw_run(server.url, work)), options.tasks, 1)
    ours, raw = report["batches"][1], report["raw"]
    report["to_raw"] = round(ours["tasks_per_second"] / raw["tasks_per_second"], 3)
    report["to_raw_two_cores"] = round(ours["two_cores"]["tasks_per_second"] / raw["two_cores"]["tasks_per_second"], 3)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
