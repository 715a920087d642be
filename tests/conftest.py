"""Shared by all tests: sfumato is imported before any test module imports transformers or diffusers by itself."""

import pytest

import sfumato as sfumato


def pytest_addoption(parser: pytest.Parser) -> None:
    """How hard the chaos tests strike, and which cluster the cluster tests take."""
    parser.addoption("--kube-context", default="", help="the cluster for tests/cluster, instead of one made with kind; it has the images")
    parser.addoption("--faults", type=int, default=8, help="faults in tests/chaos's run of the whole system (60: the long variant)")
    parser.addoption("--fuzz", type=int, default=220, help="requests made up for each route of the inference service, as many bad ones")
