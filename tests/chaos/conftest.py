"""How hard the chaos tests strike."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=int, default=8, help="faults in the run of the whole system (60: the long variant)")


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--faults")
