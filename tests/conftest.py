"""Shared by all tests: sfumato is imported before any test module imports transformers or diffusers by itself."""

import os
import shutil
import signal
from typing import Any

import pytest

# Before PyTorch is loaded, for the processes that tests start as well. Several threads wait for each other where other processes use the
# cores too: a training step of a small model took ten times as long with two threads as with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sfumato as sfumato  # noqa: E402

# A shell that puts the tests into the background has them, and all they start, ignore Ctrl-C. A handler is not inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

NOT_RUN = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How hard the chaos and fuzz tests strike, and which cluster the cluster tests take."""
    parser.addoption("--kube-context", default="", help="the cluster for tests/cluster, instead of one made with kind; it has the images")
    parser.addoption("--faults", type=int, default=8, help="faults in tests/chaos's runs of the whole system (make chaos: 60 and 200)")
    parser.addoption("--fuzz", type=int, default=220, help="requests made up for each route of the inference service, as many bad ones")
    parser.addoption("--pictures", type=int, default=300, help="hostile pictures of each kind (10000: the long variant)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a cluster none of the tests that need one is run, and one line says why."""
    ours = [item for item in items if item.get_closest_marker("cluster")]
    if ours and not config.getoption("--kube-context") and shutil.which("kind") is None:
        items[:] = [item for item in items if item not in ours]
        config.hook.pytest_deselected(items=ours)
        config.stash[NOT_RUN] = len(ours)
        if (output := getattr(config, "workeroutput", None)) is not None:  # one of several processes, none of which has a terminal
            output["not_run"] = len(ours)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What one of several processes did not run."""
    node.config.stash[NOT_RUN] = getattr(node, "workeroutput", {}).get("not_run", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The one line."""
    if config.stash.get(NOT_RUN, 0):
        reason = "there is no kind on this machine, and no --kube-context names a cluster"
        terminalreporter.write_line(f"NOT RUN [{config.stash[NOT_RUN]}] tests/cluster: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Not to have run them is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(NOT_RUN, 0):
        session.exitstatus = pytest.ExitCode.OK
