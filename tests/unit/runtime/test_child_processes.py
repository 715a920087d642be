"""Child processes end with the process that started them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

# A thread starts the child and ends: the child stays for as long as the process does.
SLEEP = """
import sys, threading
from sfumato.runtime import child_processes
started = []
thread = threading.Thread(target=lambda: started.append(child_processes.start(["sleep", "600"], start_new_session=True)))
thread.start()
thread.join()
print(started[0].pid, flush=True)
sys.stdin.read()
"""
NATS = """
import sys
from pathlib import Path
from sfumato.runtime.bus.nats_server import NatsServer
server = NatsServer(Path(sys.argv[1]))
server.start()
print(server.process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("script", [SLEEP, NATS], ids=["any", "nats-server"])
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, script: str) -> None:
    line = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        time.sleep(0.2)
        assert _alive(child)
        starter.kill()
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(process: int) -> bool:
    """Whether a process still runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
