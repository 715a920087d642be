"""Settings of this machine: environment variables ``SFUMATO_*``. They never change a run's result.

Every value is checked where it is read, so that no library meets one that it cannot use: text is one line, numbers are finite, addresses
and URLs have a valid host and port, and tokens fit into a header.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict, SettingsError

from sfumato.errors import Faults, InvalidInput
from sfumato.runtime.addresses import BusUrls, CollectorAddress, HttpUrl, ListeningAddress

SECRETS = "SFUMATO_SECRETS"
"""The variable that names a folder of files with secret settings (passwords, tokens), which should not be in an environment."""


LARGEST = 1e9
"""The largest number with a fraction that a setting takes: 31 years in seconds. Timers do not take every float."""
_INVALID = "Value error, "


def _one_line(text: str) -> str:
    """The text. Raises ValueError: it has line breaks or other control characters, or bytes that are not UTF-8."""
    if any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in text):
        raise ValueError("must be one line without control characters")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise ValueError("must be UTF-8 text")
    return text


def _header(secret: SecretStr) -> SecretStr:
    """The secret. Raises ValueError: a header of HTTP or gRPC cannot carry it."""
    text = secret.get_secret_value()
    if not text.isascii():
        raise ValueError("must be ASCII, because it is sent in a header; for example the output of: openssl rand -hex 32")
    if text != text.strip():
        raise ValueError("must not begin or end with a space")
    return secret


Token = Annotated[SecretStr, AfterValidator(_header)]
"""A setting: a token or a key that is sent in a header."""


class FiledSettings(BaseSettings):
    """Settings from environment variables, or from files: a file ``NAME`` in the folder ``SFUMATO_SECRETS`` sets what ``NAME`` sets.

    A variable overrides a file. A missing folder is an error: missing secrets would otherwise look like secrets that are not set.

    Raises:
        Faults: invalid variables, by name; their values are not repeated, since they may be secret.
    """

    model_config = SettingsConfigDict(allow_inf_nan=False)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            prefix = self.model_config.get("env_prefix", "")
            names = [(prefix + ".".join(str(part) for part in fault["loc"])).upper() for fault in error.errors()]
            raise Faults(
                [(name, f"{fault['msg'].removeprefix(_INVALID)}.") for name, fault in zip(names, error.errors(), strict=True)]
            ) from None
        except SettingsError as error:
            raise InvalidInput("settings", f"{error}.", hint="Lists and objects are written as JSON.") from None

    @field_validator("*")
    @classmethod
    def _usable(cls, value: object) -> object:
        """Check what holds for values of every setting."""
        if isinstance(value, float) and abs(value) > LARGEST:
            raise ValueError(f"must be at most {LARGEST:.0f}")
        if isinstance(value, str | Path):
            _one_line(str(value))
        if isinstance(value, SecretStr):
            _one_line(value.get_secret_value())
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Constructor arguments, then the environment, then files.

        Raises:
            InvalidInput: the folder of files does not exist.
        """
        folder = os.environ.get(SECRETS, "")
        if not folder:
            return init_settings, env_settings
        if not Path(folder).is_dir():
            raise InvalidInput(SECRETS, f"there is no folder {folder}.", hint="Is the secret mounted there?")
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, folder)


class LogFormat(StrEnum):
    """The format of the log; auto is text on a terminal and JSON elsewhere."""

    auto = "auto"
    json = "json"
    text = "text"


class TelemetrySettings(FiledSettings):
    """Traces, metrics and log of a process: ``SFUMATO_TELEMETRY_OTLP``, ``SFUMATO_METRICS_ADDRESS``, ``SFUMATO_LOG_*``."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_", frozen=True)

    # A collector for OTLP over gRPC, such as http://127.0.0.1:4317; empty: no traces.
    telemetry_otlp: CollectorAddress = ""
    # Address of the HTTP port for metrics and probes, as host:port; empty: none.
    metrics_address: ListeningAddress = ""
    # auto, json or text.
    log_format: LogFormat = LogFormat.auto
    # The lowest level that is logged.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class ServingSettings(FiledSettings):
    """How a service answers over gRPC: ``SFUMATO_GRPC_*``."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_GRPC_", frozen=True)

    # Address as host:port; empty: 127.0.0.1 and the service's default port.
    address: ListeningAddress = ""
    # Clients must send it as "authorization: Bearer TOKEN"; empty: no token.
    token: Token = SecretStr("")
    # PEM files of its certificate chain and key; without them there is no TLS.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    # PEM file of the authorities that sign client certificates; with it, clients must have one (mTLS).
    tls_client_authority: Path | None = None
    # Bytes of a message, either way.
    max_message: int = Field(default=64 * 2**20, ge=2**20, le=2**30)
    # Bytes of a file that is put into the artifact store, and of all files in transit at the same time.
    max_artifact: int = Field(default=2**30, ge=2**20)
    # Calls that may wait for an engine while it is busy.
    waiting: int = Field(default=32, ge=0)
    # Calls that may be open at once, over all services; each may hold a message.
    max_calls: int = Field(default=256, ge=1)
    # Seconds that open calls have to end when the service is stopped.
    grace: float = Field(default=30.0, ge=0)


class ClientSettings(FiledSettings):
    """How services are called: ``SFUMATO_CLIENT_*``."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_CLIENT_", frozen=True)

    # The services' token (their SFUMATO_GRPC_TOKEN), if they require one.
    token: Token = SecretStr("")
    # PEM file of the authority that signed the services' certificates. TLS is used if it is set, or for addresses tls://host:port.
    ca: Path | None = None
    # PEM files of this client's certificate and key, if services require them (mTLS).
    certificate: Path | None = None
    key: Path | None = None
    # Bytes of a message, either way.
    max_message: int = Field(default=64 * 2**20, ge=2**20, le=2**30)
    # Default timeout in seconds of a call with one answer; streams have none.
    timeout: float = Field(default=600.0, gt=0)


class Settings(FiledSettings):
    """Read once when a program starts, and passed on as plain values."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_", frozen=True)

    # Folder of runs and their artifacts.
    runs: Path = Path("runs")
    # Artifact store: a folder, or an obstore URL such as s3://bucket/prefix; empty: <runs>/artifacts.
    artifacts: str = ""
    # The registry's database, sqlite:///PATH or postgresql://USER@HOST/NAME; empty: registry.sqlite among the runs.
    registry_url: str = ""
    # Folder of Vista's models, if they are not the shipped ones (retrained with `sfumato vista train`).
    weights: Path | None = None
    # Whether a task may name a folder of this machine as its model; leave it off for services that others can reach.
    model_folders: bool = False
    # Parallel generator processes, and trainer processes; 0: one per core, or one if a model is large.
    workers: int = Field(default=0, ge=0, le=64)
    # CPU threads of each worker process. The last bits of a matrix product depend on it, so it is a fixed number, not the number of cores.
    threads: int = Field(default=1, ge=1, le=256)
    # Address of a running OpenAI-compatible VLM server; empty: a run starts its own.
    vlm_url: HttpUrl = ""
    # PEM file of the authority that signed its certificate, if it is a private one (addresses with https://).
    vlm_ca: Path | None = None
    # GPUs that a server started here uses for a large model (tensor parallel).
    vlm_gpus: int = Field(default=1, ge=1, le=64)
    # Its API key, if it requires one; never logged. A server that is started here requires the same key.
    vlm_api_key: Token = SecretStr("")
    # Timeout in seconds of a question: a long answer of a large model takes a minute or two.
    vlm_timeout: float = Field(default=300.0, gt=0)
    # Seconds to wait for a server that is still starting; a run that starts its own waits longer.
    vlm_wait: float = Field(default=10.0, ge=0)

    @property
    def artifacts_url(self) -> str:
        """The artifact store, with the default filled in."""
        return self.artifacts or str(self.runs / "artifacts")

    @property
    def registry_database(self) -> str:
        """The registry's database, with the default filled in."""
        return self.registry_url or f"sqlite:///{self.runs / 'registry.sqlite'}"


class StoreSettings(FiledSettings):
    """Credentials of a bucket, ``AWS_*``, which may be files. What is not set here, the store finds by its own means."""

    model_config = SettingsConfigDict(env_prefix="AWS_", frozen=True)

    access_key_id: Token = SecretStr("")
    secret_access_key: Token = SecretStr("")
    session_token: Token = SecretStr("")


class BusSettings(FiledSettings):
    """The bus: ``SFUMATO_BUS_*``, the same for the orchestrator and every worker."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_BUS_", frozen=True)

    # nats-server's address; for a cluster several, separated by commas.
    url: BusUrls = "nats://127.0.0.1:4222"
    # Its token, if it requires one,
    token: SecretStr = SecretStr("")
    # or a user and a password. A user's replies come on subjects that begin with _INBOX.NAME, which other users may not read.
    user: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$")
    password: SecretStr = SecretStr("")
    # PEM file of the authority that signed its certificate, if it is a private one (addresses with tls://).
    ca: Path | None = None
    # Replicas of the streams in a cluster: 1, or 3 in production.
    replicas: int = Field(default=1, ge=1, le=5)
    # Seconds without a message from a worker after which its task is delivered to another.
    ack_wait: float = Field(default=30.0, ge=0.2)
    # Failures after which a task becomes a dead letter; `Unavailable` (something that it needs is away) is not counted.
    failures: int = Field(default=3, ge=1, le=1000)
    # Deliveries after which it becomes a dead letter, whatever the reason (its worker was killed, stopped, or lacked something).
    deliveries: int = Field(default=20, ge=1, le=1000)
    # Seconds before a failed task is delivered again; doubled after each delivery, at most 30.
    retry_delay: float = Field(default=1.0, ge=0)
    # Tasks of one service that workers may have taken at the same time.
    in_work: int = Field(default=1000, ge=1)
    # Tasks of one service that a run publishes at a time; the others wait in the orchestrator, where urgent tasks go first.
    window: int = Field(default=256, ge=1)
    # Seconds after which a run first checks on a task without a result; the interval grows.
    look: float = Field(default=5.0, gt=0)
    # Seconds that the bus may be away before a run gives up.
    patience: float = Field(default=120.0, gt=0)
    # Seconds that a worker has to finish its tasks when it is stopped.
    grace: float = Field(default=30.0, ge=0)
