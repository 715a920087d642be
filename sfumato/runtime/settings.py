"""How this machine runs sfumato: environment variables ``SFUMATO_*``, never part of a run's result."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read once where a program starts, and handed on as plain values."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_", frozen=True)

    # Where runs and their artifacts lie.
    runs: Path = Path("runs")
    # Another place for artifacts (a folder or an obstore URL such as s3://bucket/prefix); empty: <runs>/artifacts.
    artifacts: str = ""
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


class BusSettings(BaseSettings):
    """Where the bus is and how it is used: ``SFUMATO_BUS_*``, the same for the orchestrator and for every worker."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_BUS_", frozen=True)

    # nats-server's address; several, with commas, of a cluster.
    url: str = "nats://127.0.0.1:4222"
    # What it wants to be shown, where it wants anything.
    token: SecretStr = SecretStr("")
    # The authority that signed its certificate, where that is a private one (addresses with tls://).
    ca: Path | None = None
    # On how many servers of a cluster streams are kept: 1, or 3 in production.
    replicas: int = Field(default=1, ge=1, le=5)
    # Seconds without a word from a worker after which its task is given to another.
    ack_wait: float = Field(default=30.0, ge=0.2)
    # How often a task is given out before it is set aside as a dead letter.
    deliveries: int = Field(default=3, ge=1, le=1000)
    # Seconds before a task that failed is given out again.
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
