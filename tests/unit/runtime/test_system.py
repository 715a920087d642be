"""Finding the running system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sfumato.runtime.processes import process_started
from sfumato.runtime.system import FILE, Member, System, find_system

MEMBERS = {"scoring": Member(service="scoring", address="127.0.0.1:7103", metrics="127.0.0.1:7203")}


def test_a_system_is_found_while_its_process_lives_and_not_after(tmp_path: Path) -> None:
    assert find_system(tmp_path) is None
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        system = System(pid=process.pid, started=process_started(process.pid), bus="nats://127.0.0.1:4222", members=MEMBERS)
        system.write(tmp_path)
        assert find_system(tmp_path) == system and system.address("scoring") == "127.0.0.1:7103"
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
    finally:
        process.communicate(b"\n")
    assert find_system(tmp_path) is None


def test_another_process_with_the_same_id_is_not_the_system(tmp_path: Path) -> None:
    System(pid=os.getpid(), started=process_started(os.getpid()) - 100, bus="", members={}).write(tmp_path)
    assert find_system(tmp_path) is None


def test_an_invalid_file_is_no_system(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    assert find_system(tmp_path) is None
