"""Whatever falls while a run is under way, it ends with the same bytes, and nothing is done twice that was not in flight."""

import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.transports.local import LocalService, LocalTransport
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import DEAD, Bus, DeadLetter, dead_subject
from tests.chaos.replica import POISON, TASKS, run
from tests.unit.bus_system import HANDLERS, ROOT, System, running

WORKERS, REPLICAS = 2, 2


class Killer:
    """Faults drawn from a seed; what it takes away it gives back, as a supervisor would."""

    def __init__(self, system: System, folder: Path, seed: int) -> None:
        self.system, self.folder = system, folder
        self.random = random.Random(seed)
        self.workers = [system.worker() for _ in range(WORKERS)]
        self.replicas = [self._replica(number) for number in range(REPLICAS)]
        # At most this many tasks were in the hands of those that were struck.
        self.in_flight = 0
        self.faults: list[str] = []

    def strike(self) -> None:
        """One fault."""
        usual: list[Callable[[], None]] = [self.kill_worker, self.kill_server, self.kill_replica, self.pause_worker]
        # The store is wiped once and early: later it would take the dead letter with it. Then every other kind once, then by chance.
        faults = [self.kill_worker, self.wipe_server, *usual[1:]]
        fault = faults[len(self.faults)] if len(self.faults) < len(faults) else self.random.choice(usual)
        self.faults.append(fault.__name__)
        fault()

    def kill_worker(self) -> None:
        index = self.random.randrange(WORKERS)
        self.workers[index].kill()
        self.in_flight += 1
        self.workers[index] = self.system.worker()

    def pause_worker(self) -> None:
        worker = self.random.choice(self.workers)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * self.system.settings.ack_wait)
        worker.send_signal(signal.SIGCONT)
        self.in_flight += 1

    def kill_server(self) -> None:
        self.system.server.kill()
        self.in_flight += WORKERS
        self.system.server.start()

    def wipe_server(self) -> None:
        self.system.server.kill()
        shutil.rmtree(self.system.server.store)
        self.in_flight += WORKERS
        self.system.server.start()

    def kill_replica(self) -> None:
        index = self.random.randrange(REPLICAS)
        self.replicas[index].kill()
        self.replicas[index] = self._replica(index)

    def result(self, number: int) -> Path:
        """Where a replica writes its state."""
        return self.folder / f"replica-{number}.json"

    def _replica(self, number: int) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "tests.chaos.replica", str(self.result(number))]
        with (self.folder / "replicas.log").open("ab") as log:
            process = subprocess.Popen(line, env=self.system.environment(), cwd=ROOT, stdout=log, stderr=log)
        self.system.workers.append(process)  # so that it ends with the test
        return process


@pytest.mark.slow
@pytest.mark.parametrize("faults", [8])
def test_a_run_among_falling_processes_ends_in_the_same_bytes(tmp_path: Path, faults: int) -> None:
    undisturbed = tmp_path / "undisturbed"
    local_service = LocalService(HANDLERS, WORKERS, environment={"TEST_LEDGER": str(tmp_path / "undisturbed-ledger")})
    with LocalTransport({"echo": local_service}, str(undisturbed)) as transport:
        expected = run(transport, ArtifactStore(str(undisturbed)))

    with running(tmp_path, ack_wait=3.0) as system:
        killer = Killer(system, tmp_path, seed=7)
        for _ in range(faults):
            time.sleep(killer.random.uniform(0.2, 0.8))
            killer.strike()
        for number, replica in enumerate(killer.replicas):
            assert replica.wait(180) == 0, (tmp_path / "replicas.log").read_text()[-4000:]
            state = json.loads(killer.result(number).read_text())
            assert (tuple(state["samples"]), state["total"]) == (tuple(expected.samples), expected.total)
            assert state["poison"] == POISON.id

        assert _contents(tmp_path / "artifacts") == _contents(undisturbed)
        begun = [word for word in system.done() if word.startswith("begin")]
        assert TASKS <= len(begun) <= TASKS + killer.in_flight, killer.faults
        letters = asyncio.run(_letters(system))
        assert [(letter.task_id, letter.failure.kind) for letter in letters] == [(POISON.id, "ZeroDivisionError")]


async def _letters(system: System) -> list[DeadLetter]:
    async with Bus(system.settings, "test") as bus:
        subjects = (await bus.js.stream_info(DEAD, subjects_filter=dead_subject("*", "*"))).state.subjects or {}
        return [DeadLetter.model_validate_json((await bus.js.get_last_msg(DEAD, subject)).data or b"") for subject in subjects]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
