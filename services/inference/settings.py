"""How the inference service runs: environment variables ``SFUMATO_INFERENCE_*``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from sfumato.runtime.addresses import ServiceAddress, parsed_url
from sfumato.runtime.settings import FiledSettings


def _origins(text: str) -> str:
    for origin in filter(None, (part.strip() for part in text.split(","))):
        if origin == "*":
            continue
        parts = parsed_url(origin, ("http", "https"))
        if parts.path or parts.query or parts.fragment or parts.username or origin != origin.lower():
            raise ValueError("must be origins such as https://example.com, in small letters without a path, separated by commas, or *")
    return text


Origins = Annotated[str, AfterValidator(_origins)]


class InferenceSettings(FiledSettings):
    """Read once where the service starts, and handed on as plain values."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_INFERENCE_", frozen=True)

    # The served model; it answers requests that name no model.
    model: str = "vista@production"
    # The base model's weights: vista, a name on the hub, or a folder of this machine where SFUMATO_MODEL_FOLDERS allows it.
    base: str = "vista"
    # Precision of the weights: float32 or bfloat16.
    precision: Literal["float32", "bfloat16"] = "float32"
    # The registry whose aliases are followed, as host:port.
    registry: ServiceAddress = "127.0.0.1:7105"
    # The scoring service for new versions' pictures; empty: they are checked for finite numbers only.
    scoring: ServiceAddress = ""
    # Pictures in work at the same time, and pictures that may wait.
    pictures: int = Field(default=16, ge=1, le=256)
    waiting: int = Field(default=64, ge=0)
    # Bytes that a forward may need beside the weights; large rows lower the batch size. Absent: no limit.
    memory: int | None = Field(default=None, ge=1)
    # Rows (pictures, unconditional and region branches) of one forward at most.
    max_batch: int = Field(default=16, ge=1)
    # Bytes of adapters that requests add on top of a version.
    extras: int = Field(default=2**30, ge=0)
    # Unused versions that stay prepared, so that a rollback is immediate.
    keep: int = Field(default=1, ge=0)
    # The share of the requests without an alias that goes to the alias canary, 0 to 1; 0: no canary is followed.
    canary: float = Field(default=0.0, ge=0, le=1)
    # Requests of a canary before it is decided.
    canary_requests: int = Field(default=200, ge=1)
    # A text file of the prompts that every version paints before it is served; absent: the package's own.
    golden: Path | None = None
    # How far below the registry's record the mean of their CLIP and aesthetic scores may be.
    golden_clip: float = Field(default=5.0, ge=0)
    golden_aesthetic: float = Field(default=1.5, ge=0)

    # The clients' keys: a JSON file of [{"name", "sha256", "rate", "concurrency"}], with the SHA-256 of each key; absent: no key is needed.
    keys: Path | None = None
    # Pictures that one key (without keys: all clients together) may request, such as 600/minute; empty: no limit.
    rate: str = ""
    # Concurrent requests of one key, waiting ones included.
    concurrency: int = Field(default=64, ge=1)

    # Maximum pictures of one request.
    max_pictures: int = Field(default=10, ge=1, le=10)
    # Maximum bytes of a request's body, with and without pictures.
    max_upload: int = Field(default=50_000_000, ge=1_000_000)
    max_body: int = Field(default=2_000_000, ge=100_000)
    # The largest accepted adapter scale.
    max_adapter_scale: float = Field(default=2.0, ge=1.0)

    # Answers to requests with an Idempotency-Key are kept for so many seconds, up to so many bytes of pictures in all.
    idempotency_seconds: float = Field(default=3600.0, gt=0)
    idempotency_bytes: int = Field(default=64 * 2**20, ge=0)

    # The origins of web pages that may call the service from a browser (https://example.com, separated by commas), or *; empty: none.
    cors: Origins = ""
    # Seconds without an event after which a stream sends a comment, so that proxies on the way do not close it.
    keep_alive: float = Field(default=15.0, ge=0.05)

    # nudenet: pictures in which it detects nudity are held back.
    safety: Literal["off", "nudenet"] = "off"
    # File of the audit log, one line of JSON per request; absent: the service's own log.
    audit: Path | None = None
    # Whether the audit log contains prompts, or only their SHA-256.
    audit_prompts: bool = False
