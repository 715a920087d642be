"""A cluster to test on: the one of ``--kube-context``, or one that kind makes and that ends with the tests."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest

from deploy.images import DEPLOYABLES
from tests.cluster.clusters import Release

NAME = "sfumato-tests"
NOT_RUN = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a cluster none of them is run, and one line says why."""
    ours = [item for item in items if item.get_closest_marker("cluster")]
    if ours and not config.getoption("--kube-context") and shutil.which("kind") is None:
        items[:] = [item for item in items if item not in ours]
        config.hook.pytest_deselected(items=ours)
        config.stash[NOT_RUN] = len(ours)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The one line."""
    if config.stash.get(NOT_RUN, 0):
        reason = "there is no kind on this machine, and no --kube-context names a cluster"
        terminalreporter.write_line(f"NOT RUN [{config.stash[NOT_RUN]}] tests/cluster: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Not to have run them is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(NOT_RUN, 0):
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session")
def context(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the cluster's context; images are in it."""
    named = request.config.getoption("--kube-context")
    if named:
        yield named  # whoever names a cluster has given it the images
        return
    subprocess.run(["kind", "create", "cluster", "--name", NAME, "--wait", "5m"], check=True)
    try:
        images = [f"sfumato/{name}:{version('sfumato')}" for name in DEPLOYABLES]
        subprocess.run(["kind", "load", "docker-image", "--name", NAME, *images], check=True)
        yield f"kind-{NAME}"
    finally:
        subprocess.run(["kind", "delete", "cluster", "--name", NAME], check=True)


@pytest.fixture(scope="module")
def release(context: str) -> Iterator[Release]:
    """An installed release, in a namespace that enforces Pod Security's strictest standard."""
    made = Release(context, "sfumato-tests")
    made.kubectl("create", "namespace", made.namespace)
    made.kubectl("label", "namespace", made.namespace, "pod-security.kubernetes.io/enforce=restricted")
    made.install()
    yield made
    made.remove()


@pytest.fixture
def another(context: str) -> Iterator[Release]:
    """A second one, which has done nothing yet: what the first has finished would be found in its store."""
    made = Release(context, "sfumato-tests-more")
    made.install()
    yield made
    made.remove()
