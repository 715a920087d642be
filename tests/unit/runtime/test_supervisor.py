"""The supervisor keeps a program up beside gRPC's threads, without a fork, and leaves nothing of it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from sfumato.runtime.processes import HOST, free_ports
from sfumato.runtime.supervisor import Program, Supervisor

ROOT = Path(__file__).parents[3]
# A process with open gRPC channels, as `sfumato up` is one, in which every fork is counted.
SUPERVISED = """
import asyncio, ctypes, os, signal, sys, time
from pathlib import Path
import psutil
from sfumato.runtime.client import channel
from sfumato.runtime.processes import HOST, free_ports
from sfumato.runtime.supervisor import Program, Supervisor, serving

forks = []
handler = ctypes.CFUNCTYPE(None)(lambda: forks.append("C"))
assert ctypes.CDLL(None)["__register_atfork"](handler, None, None, None) == 0
os.register_at_fork(before=lambda: forks.append("Python"))
folder = Path(sys.argv[1])
address = f"{HOST}:{free_ports([0])[0]}"
told = []

async def again(process, number):
    process.send_signal(number)
    count = len([line for line in told if b"it is up again" in line])
    while len([line for line in told if b"it is up again" in line]) == count:
        await asyncio.sleep(0.1)

async def main():
    supervisor = Supervisor(folder, lambda name, line: told.append(line))
    program = Program("registry", "services.registry.app", address, {"SFUMATO_RUNS": str(folder), "SFUMATO_GRPC_ADDRESS": address})
    with channel(address) as opened:
        await supervisor.start([program])
        processes = []
        for strikes_guard, number in ((False, signal.SIGKILL), (True, signal.SIGKILL), (False, signal.SIGTERM)):
            (guard,) = psutil.Process().children()
            (running,) = guard.children()
            processes += [guard, running]
            await again(guard if strikes_guard else running, number)
        (guard,) = psutil.Process().children()
        (running,) = guard.children()
        running.suspend()
        await supervisor.stop()
        processes += [guard, running]
    _, left = psutil.wait_procs(processes, timeout=10)
    assert not left and not psutil.Process().children()

asyncio.run(main())
assert forks == [], forks
words = (folder / "registry.log").read_text()
assert words.count("Listening on port") == 4 and "fork()" not in words
print("done")
"""


def test_a_program_is_started_again_without_a_fork_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISED, str(tmp_path)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_a_program_whose_log_cannot_be_opened_is_started_as_soon_as_it_can(tmp_path: Path) -> None:
    logs, told = tmp_path / "logs", []
    address = f"{HOST}:{free_ports([0])[0]}"

    async def run() -> None:
        supervisor = Supervisor(logs, lambda _, line: told.append(line))
        environment = {"SFUMATO_RUNS": str(tmp_path), "SFUMATO_GRPC_ADDRESS": address, "PYTHONPATH": str(ROOT)}
        starting = asyncio.create_task(supervisor.start([Program("registry", "services.registry.app", address, environment)]))
        while not told:
            await asyncio.sleep(0.1)
        logs.mkdir()
        await starting
        await supervisor.stop()

    asyncio.run(run())
    assert b"registry.log cannot be opened (No such file or directory); it is started again in" in told[0]
    assert "Listening on port" in (logs / "registry.log").read_text()
