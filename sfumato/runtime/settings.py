"""How this machine runs sfumato: environment variables ``SFUMATO_*``, never part of a run's result."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServingSettings(BaseSettings):
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
    # Calls that may wait for an engine while it is at one.
    waiting: int = Field(default=32, ge=0)
    # Calls that may be open at once, of all services and kinds; each may hold a message.
    max_calls: int = Field(default=256, ge=1)
    # Seconds that calls have to end once the service is told to.
    grace: float = Field(default=30.0, ge=0)


class Settings(BaseSettings):
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
    # Processes that paint, and that train, side by side; 0: as many as the machine has cores, one where a model is large.
    workers: int = Field(default=0, ge=0, le=64)
    # CPU threads of each worker process; the last bits of a matrix product depend on it, so it is fixed and not measured.
    threads: int = Field(default=1, ge=1, le=256)
    # An OpenAI-compatible VLM server that already runs; empty: a run starts its own.
    vlm_url: str = ""
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
