"""Secrets come from files; the environment overrides them, and a missing folder is an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.scoring.app import ScoringSettings
from sfumato.errors import Faults, InvalidInput
from sfumato.runtime.settings import SECRETS, BusSettings, ServingSettings, Settings, StoreSettings

ROOT = Path(__file__).parents[3]


def test_a_secret_is_read_from_the_file_of_its_name_and_never_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_missing_folder_of_secrets_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS, str(tmp_path / "nowhere"))
    with pytest.raises(InvalidInput, match="SFUMATO_SECRETS"):
        BusSettings()


def test_invalid_settings_are_named_together_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_BUS_REPLICAS", "three secrets")
    monkeypatch.setenv("SFUMATO_BUS_ACK_WAIT", "0")
    with pytest.raises(Faults) as caught:
        BusSettings()
    assert {name for name, _ in caught.value.faults} == {"SFUMATO_BUS_REPLICAS", "SFUMATO_BUS_ACK_WAIT"}
    assert "secrets" not in str(caught.value) and "greater than or equal to 0.2" in str(caught.value)
    monkeypatch.setenv("SFUMATO_SCORING_METRICS", "clip, mps")
    with pytest.raises(InvalidInput, match="metrics.*JSON"):
        ScoringSettings()


@pytest.mark.parametrize(
    ("program", "variable", "value"),
    [
        (["sfumato.cli.main", "runs", "ls"], "SFUMATO_WORKERS", "many"),
        (["sfumato.cli.main", "serve"], "SFUMATO_INFERENCE_PICTURES", "many"),
        (["services.registry.app"], "SFUMATO_LOG_LEVEL", "loud"),
        (["orchestrator.app"], "SFUMATO_ORCHESTRATOR_RUNS", "0"),
    ],
)
def test_every_program_ends_with_status_two_and_the_invalid_settings_name(program: list[str], variable: str, value: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), variable: value}
    done = subprocess.run([sys.executable, "-m", *program], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and variable in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
