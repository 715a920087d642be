"""Secrets come from files; the environment overrides them, and a missing folder is an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.inference.settings import InferenceSettings
from services.scoring.app import ScoringSettings
from sfumato.errors import Faults, InvalidInput
from sfumato.runtime.settings import (
    SECRETS,
    BusSettings,
    ClientSettings,
    FiledSettings,
    ServingSettings,
    Settings,
    StoreSettings,
    TelemetrySettings,
)

ROOT = Path(__file__).parents[3]


def test_a_secret_is_read_from_the_file_of_its_name_and_never_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a cluster mounts them: links to a folder that is replaced as a whole.
    version = tmp_path / "..2026"
    version.mkdir()
    values = {
        "SFUMATO_BUS_PASSWORD": "pass\n",
        "SFUMATO_GRPC_TOKEN": "token",
        "AWS_SECRET_ACCESS_KEY": "key",
        "SFUMATO_REGISTRY_URL": "postgresql://u:p@h/d",
    }
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


INVALID = [
    (ServingSettings, "SFUMATO_GRPC_TOKEN", "schlüssel", "ASCII"),
    (ServingSettings, "SFUMATO_GRPC_TOKEN", "a\nb", "one line"),
    (ServingSettings, "SFUMATO_GRPC_ADDRESS", "http://0.0.0.0:7101", "host:port"),
    (ServingSettings, "SFUMATO_GRPC_ADDRESS", "0.0.0.0:70000", "65535"),
    (ServingSettings, "SFUMATO_GRPC_GRACE", "inf", "finite"),
    (ClientSettings, "SFUMATO_CLIENT_TOKEN", "ключ", "ASCII"),
    (ClientSettings, "SFUMATO_CLIENT_TIMEOUT", "1e12", "at most"),
    (Settings, "SFUMATO_VLM_API_KEY", "a\tb", "control"),
    (Settings, "SFUMATO_VLM_URL", "localhost:8000", "http:// or https://"),
    (Settings, "SFUMATO_VLM_URL", "http://host:port", "valid host and port"),
    (Settings, "SFUMATO_ARTIFACTS", "s3://a\nb", "one line"),
    (Settings, "SFUMATO_RUNS", "a\nb", "one line"),
    (BusSettings, "SFUMATO_BUS_URL", "http://nats:4222", "nats://, tls://, ws:// or wss://"),
    (BusSettings, "SFUMATO_BUS_URL", "nats://nats:4222,nats://", "host"),
    (BusSettings, "SFUMATO_BUS_PASSWORD", "a\r\nSUB x", "one line"),
    (BusSettings, "SFUMATO_BUS_PATIENCE", "nan", "finite"),
    (TelemetrySettings, "SFUMATO_TELEMETRY_OTLP", "collector", "port"),
    (TelemetrySettings, "SFUMATO_METRICS_ADDRESS", "9090", "host:port"),
    (StoreSettings, "AWS_SECRET_ACCESS_KEY", "geheimnü", "ASCII"),
    (InferenceSettings, "SFUMATO_INFERENCE_REGISTRY", "registry", "port"),
    (InferenceSettings, "SFUMATO_INFERENCE_PRECISION", "half", "float32"),
]


@pytest.mark.parametrize(("kind", "variable", "value", "reason"), INVALID)
def test_values_that_a_library_could_not_use_are_refused_where_they_are_read(
    kind: type[FiledSettings], variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(Faults, match=reason) as refused:
        kind()
    assert [name for name, _ in refused.value.faults] == [variable] and "Value error" not in str(refused.value)


VALID = [
    (ServingSettings, "SFUMATO_GRPC_ADDRESS", "[::]:7101"),
    (ServingSettings, "SFUMATO_GRPC_TOKEN", "a token with spaces"),
    (TelemetrySettings, "SFUMATO_METRICS_ADDRESS", ":9090"),
    (TelemetrySettings, "SFUMATO_TELEMETRY_OTLP", "collector:4317"),
    (TelemetrySettings, "SFUMATO_TELEMETRY_OTLP", "https://collector:4317"),
    (BusSettings, "SFUMATO_BUS_URL", "nats://a:b@n1:4222, n2:4222,wss://n3/ws"),
    (BusSettings, "SFUMATO_BUS_PASSWORD", "pässword"),
    (InferenceSettings, "SFUMATO_INFERENCE_REGISTRY", "tls://registry.sfumato.svc:7105"),
    (InferenceSettings, "SFUMATO_INFERENCE_REGISTRY", "dns:///registry-headless:7105"),
]


@pytest.mark.parametrize(("kind", "variable", "value"), VALID)
def test_values_that_libraries_can_use_are_taken(
    kind: type[FiledSettings], variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    kind()


@pytest.mark.parametrize(
    ("program", "variable", "value"),
    [
        (["sfumato.cli.main", "runs", "ls", "--server", "localhost:1"], "SFUMATO_CLIENT_TOKEN", "ü"),
        (["services.registry.app"], "SFUMATO_BUS_PATIENCE", "inf"),
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
