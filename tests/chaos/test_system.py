"""An ArtAug run on Vista among processes that die, hang and lose each other ends in the same bytes as an undisturbed one.

`--faults 60` is the long variant (`make chaos`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sfumato.runtime.bus import DEAD, Bus, DeadLetter, dead_subject, encoded, task_subject
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Task
from tests.chaos.stores import contents, files_of_run, results
from tests.chaos.whole import ROOT, Killer, Whole

SPEC = """\
name: chaos
batch: 4
prompts: {{file: {root}/configs/prompts/vista.txt, count: {prompts}, seed: 1000}}
ground: {{backend: transformers}}
filter: {{review: vlm}}
train: {{pairs: 4, steps_before: 40, steps_after: 20, together: 1}}
fuse: {{alpha: [1.0, 2.0], rank: 8, clip_loss: 100}}
stop: {{max_iterations: {iterations}, min_pairs: 1}}
tune: {{file: {root}/configs/prompts/vista-tune.txt, count: 8, seed: 500000}}
evaluate: {{file: {root}/configs/prompts/vista-held-out.txt, count: 8, seed: 900000}}
"""
# The handler finds numbers where it wants pictures, and raises an unexpected error every time.
POISON = [Task(stage="planted", kind="scoring.score", items=(number,), params={}, model="", model_reference="vista") for number in range(2)]
SEED = 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_run_among_falling_processes_ends_in_the_bytes_of_an_undisturbed_one(tmp_path: Path, faults: int) -> None:
    spec = tmp_path / "chaos.yaml"
    # Work enough that faults fall all along the run.
    spec.write_text(SPEC.format(root=ROOT, prompts=max(16, 2 * faults), iterations=1 if faults < 20 else 4))
    undisturbed = Path(_sfumato("run", str(spec), "--local", "--runs", str(tmp_path / "local"))).parent

    with Whole(tmp_path / "system") as system:
        server = ("--server", system.parts["orchestrator-1"].address)
        killer = Killer(system, SEED)
        with _begun("run", str(spec), *server, "--runs", str(tmp_path / "remote"), log=tmp_path / "run.log") as run:
            killer.wait()
            _wipe(system)
            _sfumato("runs", "resume", undisturbed.name, *server)
            asyncio.run(_plant(system))
            while len(killer.faults) < faults:
                killer.wait()
                assert run.poll() is None, f"the run ended after {killer.faults}"
                killer.strike()
            assert run.wait(3000) == 0, (tmp_path / "run.log").read_text()[-4000:] + system.logs()[-4000:]

        letters = asyncio.run(_letters(system))
        assert {letter.task_id: letter.failure.kind for letter in letters} == {task.id: "TypeError" for task in POISON}, killer.faults
        begun = _tasks(system)

    disturbed = tmp_path / "remote" / undisturbed.name
    assert results(disturbed) == results(undisturbed)
    # Both stores hold the finished run's files as well.
    stores = system.artifacts, tmp_path / "local" / "artifacts"
    assert files_of_run(stores[0], undisturbed.name) == files_of_run(stores[1], undisturbed.name)
    assert contents(stores[0]) == contents(stores[1])
    # What the wipe and the faults caught at work is all that may have been done again.
    planned = [task for task in begun if task not in {poison.id for poison in POISON}]
    assert len(planned) - len(set(planned)) <= killer.in_flight, killer.faults


def _sfumato(*arguments: str) -> str:
    done = subprocess.run(_line(*arguments), capture_output=True, text=True, cwd=ROOT, env=_environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def _begun(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output, subprocess.Popen(_line(*arguments), stdout=output, stderr=output, cwd=ROOT, env=_environment()) as begun:
        try:
            yield begun
        finally:
            begun.kill()


def _line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sfumato.cli.main", *arguments]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _wipe(system: Whole) -> None:
    """nats-server falls, and all it ever stored is gone."""
    system.server.kill()
    shutil.rmtree(system.server.store)
    system.server.start()


async def _plant(system: Whole) -> None:
    async with Bus(BusSettings(url=system.server.url), "test") as bus:
        await bus.ensure("scoring")
        for task in POISON:
            await (await bus.send(task_subject(task.service, task.id), encoded(task)))


async def _letters(system: Whole) -> list[DeadLetter]:
    async with Bus(BusSettings(url=system.server.url), "test") as bus:
        subjects = (await bus.js.stream_info(DEAD, subjects_filter=dead_subject("*", "*"))).state.subjects or {}
        return [DeadLetter.model_validate_json((await bus.js.get_last_msg(DEAD, subject)).data or b"") for subject in subjects]


def _tasks(system: Whole) -> list[str]:
    """The id of every piece of work that was begun, as often as it was, from the logs of all parts."""
    told = [json.loads(line) for line in system.logs().splitlines() if line.startswith("{") and line.endswith("}")]
    return [line["task"] for line in told if line.get("message") == "begun"]
