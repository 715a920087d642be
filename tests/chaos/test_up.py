"""Runs on a system of `sfumato up` whose processes are killed, stopped and terminated end in the same bytes as undisturbed runs.

`--faults 200` is the long variant (`make chaos`), with vLLM; the short one has the vision-language model in the grounding service.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sfumato.runtime.supervisor import serving
from sfumato.runtime.system import System, find_system
from tests.chaos.faults import Faults, processes
from tests.chaos.stores import contents, files_of_run, results

ROOT = Path(__file__).parents[2]
LONG = 20
"""Faults from which on the system has a vLLM server, and runs are larger."""
ACK_WAIT = 5.0
"""Seconds after which a silent worker's task is given to another: short, so that a stop is soon longer."""
SEED = 13
SECONDS = 600.0
SMALL = {"backend": "transformers", "prompts": 8, "iterations": 1, "pairs": 2, "before": 6, "after": 6, "others": 4}
LARGE = {"backend": "vllm", "prompts": 16, "iterations": 2, "pairs": 4, "before": 40, "after": 20, "others": 8}
SPEC = """\
name: chaos-{number}
batch: 4
prompts: {{file: {root}/configs/prompts/vista.txt, count: {prompts}, seed: {seed}}}
ground: {{backend: {backend}}}
filter: {{review: vlm}}
train: {{pairs: {pairs}, steps_before: {before}, steps_after: {after}, together: 1}}
fuse: {{alpha: [1.0, 2.0], rank: 8, clip_loss: 100}}
stop: {{max_iterations: {iterations}, min_pairs: 1}}
tune: {{file: {root}/configs/prompts/vista-tune.txt, count: {others}, seed: 500000}}
evaluate: {{file: {root}/configs/prompts/vista-held-out.txt, count: {others}, seed: 900000}}
"""


def line(*words: str) -> list[str]:
    return [sys.executable, "-m", "sfumato.cli.main", *words]


def environment(folder: Path) -> dict[str, str]:
    bus = {"SFUMATO_BUS_ACK_WAIT": str(ACK_WAIT), "SFUMATO_BUS_LOOK": "1", "SFUMATO_BUS_RETRY_DELAY": "0.2"}
    bus |= {"SFUMATO_BUS_DELIVERIES": "1000"}  # a task may be struck often, which is no fault of its own
    return os.environ | bus | {"SFUMATO_RUNS": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def wait_until(met: Callable[[], object], what: Callable[[], str], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def runs_still(process: psutil.Process) -> bool:
    """Whether a process runs, and does not only wait to be collected."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def belonging(folder: Path) -> Iterator[psutil.Process]:
    """The processes that were started with this folder of runs in their environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SFUMATO_RUNS") == str(folder):
                yield process


class Runs:
    """One run after another, each as `sfumato run`, for as long as faults fall."""

    def __init__(self, folder: Path, long: bool) -> None:
        self._folder, self._long = folder, long
        self._environment = environment(folder / "client")
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "run.log"
        self.specs: list[Path] = []
        self.lost = 0
        """How often a client found no orchestrator when it asked for the run or its files, and was started again."""

    def advance(self, system: System) -> None:
        """Begin the next run if the last one has ended."""
        if self._process is None or self._process.poll() == 0:
            self.specs.append(self._folder / f"chaos-{len(self.specs)}.yaml")
            sizes = LARGE if self._long else SMALL
            self.specs[-1].write_text(SPEC.format(root=ROOT, number=len(self.specs), seed=1000 * len(self.specs), **sizes))
        elif self._process.poll() is None:
            return
        else:
            assert self._process.returncode == 1 and "does not answer" in self.log.read_text()[-2000:], self.log.read_text()[-4000:]
            self.lost += 1
        with self.log.open("ab") as log:
            command = line("run", str(self.specs[-1]), "--server", system.address("orchestrator"), "--runs", str(self._folder / "remote"))
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    def finish(self, system: System) -> None:
        """Wait for the last one."""
        assert self._process is not None
        while self._process.wait(2 * SECONDS):
            self.advance(system)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_runs_on_a_system_whose_processes_fall_end_in_the_bytes_of_undisturbed_ones(tmp_path: Path, faults: int) -> None:
    long, folder = faults >= LONG, tmp_path / "up"
    folder.mkdir()
    command = line("up", "--ports", "auto", "--workers", "2" if long else "1", *(() if long else ("--backend", "transformers")))
    with (tmp_path / "up.log").open("wb") as log:
        up = psutil.Popen(command, env=environment(folder), cwd=tmp_path, stdout=log, stderr=log)
    runs, struck = Runs(tmp_path, long), Faults(psutil.Process(up.pid), SEED, ACK_WAIT)

    def words() -> str:
        return f"{struck.done}\n{(tmp_path / 'up.log').read_text(errors='replace')[-6000:]}"

    try:
        wait_until(lambda: find_system(folder) or up.poll() is not None, words)
        system = find_system(folder)
        assert system is not None, words()
        while len(struck.done) < faults:
            runs.advance(system)
            struck.wait()
            assert up.poll() is None, words()
            print(f"{time.strftime('%T')} {len(struck.done) + 1} {struck.strike()}, run {len(runs.specs)}", flush=True)
        struck.resume()
        runs.finish(system)

        # It still answers, and still starts again what ends.
        wait_until(lambda: all(serving(member.address) for member in system.members.values()), words)
        wait_until(lambda: not long or "vllm" in processes(up), words)
        before = processes(up)
        before["scoring"].kill()
        wait_until(lambda: processes(up).get("scoring", before["scoring"]) != before["scoring"], words)
        wait_until(lambda: serving(system.address("scoring")), words)
        struck.seen |= {*before.values(), *processes(up).values()}
        told = subprocess.run(line("down"), env=environment(folder), capture_output=True, text=True, timeout=SECONDS)
        assert told.stdout == "The system is down.\n", told.stderr + words()
        assert up.wait(SECONDS) == 0, words()
    finally:
        runs.end()
        struck.resume()
        if up.poll() is None:
            up.kill()
    said = (tmp_path / "up.log").read_text(errors="replace")
    assert "fork()" not in said  # gRPC's fork handlers say when they are skipped
    assert not [process for process in (*struck.seen, *belonging(folder)) if runs_still(process)], struck.done

    print(f"{len(struck.done)} faults, {len(runs.specs)} runs, {runs.lost} clients without an answer", flush=True)
    local = tmp_path / "local"
    for spec in runs.specs:
        command = line("run", str(spec), "--local", "--runs", str(local))
        done = subprocess.run(command, env=environment(local), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        undisturbed = Path(done.stdout.strip()).parent
        assert results(tmp_path / "remote" / undisturbed.name) == results(undisturbed)
        assert files_of_run(folder / "artifacts", undisturbed.name) == files_of_run(local / "artifacts", undisturbed.name)
    assert contents(folder / "artifacts") == contents(local / "artifacts")
