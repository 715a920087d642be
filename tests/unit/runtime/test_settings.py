"""Secrets come as files; the environment counts for more, and a folder that is not there is said."""

from pathlib import Path

import pytest

from sfumato.errors import InvalidInput
from sfumato.runtime.settings import SECRETS, BusSettings, ServingSettings, Settings, StoreSettings


def test_a_secret_is_read_from_the_file_of_its_name_and_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a cluster mounts them: links to a folder that is replaced as a whole.
    version = tmp_path / "..2026"
    version.mkdir()
    values = {"SFUMATO_BUS_PASSWORD": "pass\n", "SFUMATO_GRPC_TOKEN": "token", "AWS_SECRET_ACCESS_KEY": "key", "SFUMATO_REGISTRY_URL": "postgresql://u:p@h/d"}
    for name, value in values.items():
        (version / name).write_text(value)
        (tmp_path / name).symlink_to(Path("..2026") / name)
    monkeypatch.setenv(SECRETS, str(tmp_path))
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    assert BusSettings().password.get_secret_value() == "pass"
    assert StoreSettings().secret_access_key.get_secret_value() == "key"
    assert Settings().registry_database == "postgresql://u:p@h/d"
    monkeypatch.setenv("SFUMATO_GRPC_TOKEN", "another")
    assert ServingSettings().token.get_secret_value() == "another"
    assert "'pass'" not in repr(BusSettings()) and "another" not in repr(ServingSettings())


def test_a_folder_of_secrets_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS, str(tmp_path / "nowhere"))
    with pytest.raises(InvalidInput, match="SFUMATO_SECRETS"):
        BusSettings()
