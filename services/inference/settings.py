"""How the inference service runs: environment variables ``SFUMATO_INFERENCE_*``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class InferenceSettings(BaseSettings):
    """Read once where the service starts, and handed on as plain values."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_INFERENCE_", frozen=True)

    # The model that is served, and that a request means which names none.
    model: str = "vista@production"

    # Who may ask: a JSON file of [{"name", "sha256", "rate", "concurrency"}], the SHA-256 of each key; without it, anybody.
    keys: Path | None = None
    # Pictures that one key (or everybody, where there are no keys) may ask for, as 600/minute; empty: any number.
    rate: str = ""
    # Requests of one key that may be at work or wait at the same time.
    concurrency: int = Field(default=64, ge=1)

    # Pictures of one request.
    max_pictures: int = Field(default=10, ge=1, le=10)
    # Bytes of a request's body; of one with pictures in it, and of one without.
    max_upload: int = Field(default=50_000_000, ge=1_000_000)
    max_body: int = Field(default=2_000_000, ge=100_000)
    # The largest weight of the adapter that may be asked for.
    max_adapter_scale: float = Field(default=2.0, ge=1.0)

    # Answers to requests with an Idempotency-Key are kept for so many seconds, and for so many bytes of pictures in all.
    idempotency_seconds: float = Field(default=3600.0, gt=0)
    idempotency_bytes: int = Field(default=64 * 2**20, ge=0)

    # nudenet: a picture in which it finds nudity is not given out.
    safety: Literal["off", "nudenet"] = "off"
    # Where the audit log goes, a line of JSON a request; absent: into the service's own log.
    audit: Path | None = None
    # Whether the audit log holds prompts; else only their SHA-256.
    audit_prompts: bool = False
