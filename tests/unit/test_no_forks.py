"""The programs start processes in one way, which runs no fork handlers: gRPC's may wait for ever for gRPC's threads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ("sfumato", "services", "orchestrator")
STARTERS = {
    "sfumato/runtime/child_processes.py",  # what ends with the process that started it
    "sfumato/runtime/guard.py",  # the program itself
    "sfumato/runtime/loop_watch.py",  # the watching process, which outlives the watched one by a moment
    "sfumato/cli/up.py",  # `sfumato up --detach`, which is to outlive its caller
}
"""The files that may start a process that stays."""
FORKS = {"os.fork", "os.forkpty", "pty.fork", "pty.spawn", "os.system", "os.popen"}
FORKING = {"preexec_fn", "user", "group", "extra_groups", "umask"}
"""Options for which `subprocess` forks, or ran code between fork and exec."""
STAYING = {"Popen", "create_subprocess_exec", "create_subprocess_shell", "subprocess_exec", "subprocess_shell"}
WORDS = ("fork", "subprocess", "multiprocessing", "ProcessPool", "pty.", "os.system", "os.popen")
"""One of these is in every module of which anything is found; most modules have none, and are not parsed."""
POOLS = {"ProcessPoolExecutor"}


def forks(source: str, path: str = "module.py") -> Iterator[str]:
    """What in a module may fork, or starts a process past `ChildProcess`."""
    if not any(word in source for word in WORDS):
        return
    tree = ast.parse(source)
    subprocess_calls = {"run", "call", "check_call", "check_output", *STAYING, "ChildProcess"}
    for node in ast.walk(tree):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Import(names=names):
                yield from (f"{where} {name.name}" for name in names if _multiprocessing(name.name))
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{where} {module}" for _ in names[:1] if _multiprocessing(module))
                yield from (f"{where} {name.name}" for name in names if name.name in POOLS or f"{module}.{name.name}" in FORKS)
            case ast.Attribute(value=ast.Name(id=module), attr=name) if f"{module}.{name}" in FORKS or name in POOLS:
                yield f"{where} {module}.{name}"
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), keywords=keywords):
                if name in subprocess_calls:
                    yield from (f"{where} {keyword.arg}" for keyword in keywords if keyword.arg in FORKING)
                if name in STAYING and path not in STARTERS:
                    yield f"{where} {name}"


def _multiprocessing(module: str) -> bool:
    """Whether it is multiprocessing, or PyTorch's, but for its pipes."""
    return "multiprocessing" in module.split(".") and not module.endswith("multiprocessing.connection")


def test_no_program_forks_or_starts_a_process_that_outlives_it() -> None:
    files = [path for package in PRODUCT for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 200
    found = [fork for path in files for fork in forks(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert found == []


def test_no_test_and_no_benchmark_runs_code_between_fork_and_exec() -> None:
    files = [path for folder in ("tests", "benchmarks", "deploy") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    assert [path for path in files for fork in forks(path.read_text()) if fork.endswith(("preexec_fn", "os.fork"))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.fork()",
        "from os import fork",
        "import multiprocessing",
        "import torch.multiprocessing as mp",
        "from multiprocessing import get_context",
        "from concurrent.futures import ProcessPoolExecutor",
        "import subprocess\nsubprocess.run(['true'], preexec_fn=print)",
        "import subprocess\nsubprocess.run(['true'], user=1)",
        "import subprocess\nsubprocess.Popen(['true'])",
        "import asyncio\nasyncio.create_subprocess_exec('true')",
    ],
)
def test_each_way_of_forking_is_found(source: str) -> None:
    assert list(forks(source))


@pytest.mark.parametrize("source", ["import subprocess\nsubprocess.run(['true'])", "from multiprocessing.connection import Pipe"])
def test_what_does_not_fork_is_not_found(source: str) -> None:
    assert not list(forks(source))
