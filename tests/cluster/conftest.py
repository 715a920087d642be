"""A cluster to test on: the one of ``--kube-context``, or one that kind makes and that ends with the tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib.metadata import version

import pytest

from deploy.images import DEPLOYABLES
from tests.cluster.clusters import Release

NAME = "sfumato-tests"


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
