"""Fixtures of several packages' tests."""

from collections.abc import Iterator

import pytest

from tests.unit.scripted_vlm import ScriptedVlm, scripted_vlm


@pytest.fixture
def vlm() -> Iterator[ScriptedVlm]:
    """A server of a vision-language model that says what the test writes down for it."""
    with scripted_vlm() as server:
        yield server
