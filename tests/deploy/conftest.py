"""A cluster of the tests' own, and the release of the chart's first version in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.api import Api, serving
from tests.deploy.releases import NAMESPACE, Upgrade


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[Api, Path]]:
    """An API server without any object, and the kubeconfig that leads to it."""
    with serving(NAMESPACE, tmp_path) as found:
        yield found


@pytest.fixture
def upgrade(tmp_path: Path, api: tuple[Api, Path]) -> Upgrade:
    """The upgrade of a release of the first version, with its defaults."""
    return Upgrade(tmp_path, api[1], api[0])
