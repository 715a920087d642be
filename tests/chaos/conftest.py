"""What the chaos tests are told on the command line."""

import pytest


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--faults") or 8)
