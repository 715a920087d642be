"""How this machine runs sfumato: environment variables ``SFUMATO_*``, never part of a run's result."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict, SettingsError

from sfumato.errors import Faults, InvalidInput

SECRETS = "SFUMATO_SECRETS"
"""Names the folder of files that hold settings nobody is to see in an environment: passwords, tokens."""


class FiledSettings(BaseSettings):
    """Settings that may also be files: what a variable ``NAME`` would say, a file ``NAME`` in the folder ``SFUMATO_SECRETS`` says.

    A variable counts for more than a file. With a folder that is not there nothing starts: a secret that is missing would
    otherwise look like one that nobody wants.

    Raises:
        Faults: variables that cannot be, each by its name; what they hold is not repeated, it may be a secret.
    """

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            prefix = self.model_config.get("env_prefix", "")
            names = [(prefix + ".".join(str(part) for part in fault["loc"])).upper() for fault in error.errors()]
            raise Faults([(name, f"{fault['msg']}.") for name, fault in zip(names, error.errors(), strict=True)]) from None
        except SettingsError as error:
            raise InvalidInput("settings", f"{error}.", hint="Lists and objects are written as JSON.") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What was given, then the environment, then files.

        Raises:
            InvalidInput: the folder of files is not there.
        """
        folder = os.environ.get(SECRETS, "")
        if not folder:
            return init_settings, env_settings
        if not Path(folder).is_dir():
            raise InvalidInput(SECRETS, f"there is no folder {folder}.", hint="Is the secret mounted there?")
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, folder)


class LogFormat(StrEnum):
    """How a log is written; auto: words on a terminal, else JSON."""

    auto = "auto"
    json = "json"
    text = "text"


class TelemetrySettings(FiledSettings):
    """What a process tells of its work: ``SFUMATO_TELEMETRY_OTLP``, ``SFUMATO_METRICS_ADDRESS``, ``SFUMATO_LOG_*``."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_", frozen=True)

    # A collector that takes OTLP over gRPC, such as http://127.0.0.1:4317; empty: no traces.
    telemetry_otlp: str = ""
    # Where metrics are served over HTTP, as host:port; empty: nowhere.
    metrics_address: str = ""
    # auto, json or text.
    log_format: LogFormat = LogFormat.auto
    # The least that is logged.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class ServingSettings(FiledSettings):
    """How a service answers over gRPC: ``SFUMATO_GRPC_*``."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_GRPC_", frozen=True)

    # Where it listens, as host:port; empty: this machine only, at the service's own port.
    address: str = ""
    # What clients must show as "authorization: Bearer TOKEN"; empty: nothing.
    token: SecretStr = SecretStr("")
    # PEM files of its certificate chain and key; without them it speaks in the clear.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    # PEM file of the authorities that sign clients' certificates; with it, a client without one is turned away (mTLS).
    tls_client_authority: Path | None = None
    # Bytes of a message, either way.
    max_message: int = Field(default=64 * 2**20, ge=2**20, le=2**30)
    # Bytes of a file that is put into the artifact store, and of all that are on their way there or from it at the same time.
    max_artifact: int = Field(default=2**30, ge=2**20)
    # Calls that may wait for an engine while it is at one.
    waiting: int = Field(default=32, ge=0)
    # Calls that may be open at once, of all services and kinds; each may hold a message.
    max_calls: int = Field(default=256, ge=1)
    # Seconds that calls have to end once the service is told to.
    grace: float = Field(default=30.0, ge=0)


class ClientSettings(FiledSettings):
    """How services are called: ``SFUMATO_CLIENT_*``."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_CLIENT_", frozen=True)

    # What services want to be shown, where they want anything (their SFUMATO_GRPC_TOKEN).
    token: SecretStr = SecretStr("")
    # PEM file of the authority that signed the services' certificates; with it, or with an address tls://host:port, it speaks TLS.
    ca: Path | None = None
    # PEM files of this client's own certificate and key, where services ask for them (mTLS).
    certificate: Path | None = None
    key: Path | None = None
    # Bytes of a message, either way.
    max_message: int = Field(default=64 * 2**20, ge=2**20, le=2**30)
    # Seconds that a call with one answer may take where the caller does not say; streams may take as long as they like.
    timeout: float = Field(default=600.0, gt=0)


class Settings(FiledSettings):
    """Read once where a program starts, and handed on as plain values."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_", frozen=True)

    # Where runs and their artifacts lie.
    runs: Path = Path("runs")
    # Another place for artifacts (a folder or an obstore URL such as s3://bucket/prefix); empty: <runs>/artifacts.
    artifacts: str = ""
    # The registry's database, sqlite:///PATH or postgresql://USER@HOST/NAME; empty: registry.sqlite among the runs.
    registry_url: str = ""
    # Vista's models, where they are not the shipped ones (retrained with `sfumato vista train`).
    weights: Path | None = None
    # Whether a task may name a folder of this machine as its model; no service that others can reach should be told so.
    model_folders: bool = False
    # Processes that paint, and that train, side by side; 0: as many as the machine has cores, one where a model is large.
    workers: int = Field(default=0, ge=0, le=64)
    # CPU threads of each worker process; the last bits of a matrix product depend on it, so it is fixed and not measured.
    threads: int = Field(default=1, ge=1, le=256)
    # An OpenAI-compatible VLM server that already runs; empty: a run starts its own.
    vlm_url: str = ""
    # The authority that signed its certificate, where that is a private one (addresses with https://).
    vlm_ca: Path | None = None
    # GPUs over which a server that is started here spreads a large model.
    vlm_gpus: int = Field(default=1, ge=1, le=64)
    # Its key, where it wants one; never shown. A server that is started here asks for the same.
    vlm_api_key: SecretStr = SecretStr("")
    # Seconds a question to it may take: a large model writes a long answer for a minute or two.
    vlm_timeout: float = Field(default=300.0, gt=0)
    # Seconds in which it may still be coming up; a run that starts its own gives that one longer.
    vlm_wait: float = Field(default=10.0, ge=0)

    @property
    def artifacts_url(self) -> str:
        """Where artifacts lie, the default filled in."""
        return self.artifacts or str(self.runs / "artifacts")

    @property
    def registry_database(self) -> str:
        """The registry's database, the default filled in."""
        return self.registry_url or f"sqlite:///{self.runs / 'registry.sqlite'}"


class StoreSettings(FiledSettings):
    """The keys of a bucket: ``AWS_*`` as everywhere, for those who have them as files. What is not said here, the store finds itself."""

    model_config = SettingsConfigDict(env_prefix="AWS_", frozen=True)

    access_key_id: SecretStr = SecretStr("")
    secret_access_key: SecretStr = SecretStr("")
    session_token: SecretStr = SecretStr("")


class BusSettings(FiledSettings):
    """Where the bus is and how it is used: ``SFUMATO_BUS_*``, the same for the orchestrator and for every worker."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_BUS_", frozen=True)

    # nats-server's address; several, with commas, of a cluster.
    url: str = "nats://127.0.0.1:4222"
    # What it wants to be shown, where it wants anything: a token,
    token: SecretStr = SecretStr("")
    # or a name and a password. Whoever has a name is answered on subjects that begin with it (_INBOX.NAME), which others may not read.
    user: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$")
    password: SecretStr = SecretStr("")
    # The authority that signed its certificate, where that is a private one (addresses with tls://).
    ca: Path | None = None
    # On how many servers of a cluster streams are kept: 1, or 3 in production.
    replicas: int = Field(default=1, ge=1, le=5)
    # Seconds without a word from a worker after which its task is given to another.
    ack_wait: float = Field(default=30.0, ge=0.2)
    # How often a task may fail before it is set aside as a dead letter. That something it needs is away (`Unavailable`) is not counted.
    failures: int = Field(default=3, ge=1, le=1000)
    # How often it is given out at all, also where its worker was killed, was told to end or lacked something, before it is set aside.
    deliveries: int = Field(default=20, ge=1, le=1000)
    # Seconds before a task that failed is given out again, the first time; doubled each time, up to half a minute.
    retry_delay: float = Field(default=1.0, ge=0)
    # Tasks of one service that may be in the hands of workers at the same time.
    in_work: int = Field(default=1000, ge=1)
    # Tasks of one service that a run has on the bus; the others wait in the orchestrator, where urgent ones overtake.
    window: int = Field(default=256, ge=1)
    # Seconds after which a run first looks by itself after a task it heard nothing of; then less and less often.
    look: float = Field(default=5.0, gt=0)
    # Seconds for which the bus may be away before a run gives up.
    patience: float = Field(default=120.0, gt=0)
    # Seconds that a worker which is told to end has for what it is doing.
    grace: float = Field(default=30.0, ge=0)
