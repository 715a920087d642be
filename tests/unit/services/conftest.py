"""What all tests of the services share: their tasks may name folders of models that were made for them."""

import pytest


@pytest.fixture(autouse=True)
def folders_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_MODEL_FOLDERS", "true")
