"""Bearer keys, each with a rate limit of pictures and a limit of concurrent requests. Keys themselves are never stored or logged."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.inference.http.errors import RequestRefused, seconds
from sfumato.errors import InvalidInput
from sfumato.texts import read_text

KEYLESS = "anybody"
"""The owner's name in the audit log when there are no keys."""


class Key(BaseModel):
    """An entry of the file of keys; absent limits are those of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rate: str | None = None
    concurrency: int | None = Field(default=None, ge=1)


@dataclass(eq=False)
class Owner:
    """The owner of a key: ``rate`` limits pictures per time (None: no limit), ``concurrency`` limits concurrent requests."""

    name: str
    rate: RateLimitItem | None
    concurrency: int
    at_work: int = 0


class Keyring:
    """All owners and their recent requests; for one event loop."""

    def __init__(self, keys: Sequence[Key] = (), *, rate: str = "", concurrency: int = 64) -> None:
        """Without ``keys`` no key is needed, and all clients share one owner.

        Raises:
            InvalidInput: a rate is not of the form 600/minute, or two keys have one name.
        """
        if len({key.name for key in keys}) < len(keys):
            raise InvalidInput("keys", "two keys have one name.")
        self._owners: Mapping[str, Owner] = {
            key.sha256: Owner(key.name, _rate(rate if key.rate is None else key.rate), key.concurrency or concurrency) for key in keys
        }
        self._keyless = None if keys else Owner(KEYLESS, _rate(rate), concurrency)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    @classmethod
    def read(cls, path: Path | None, *, rate: str = "", concurrency: int = 64) -> Keyring:
        """The keys of a file, see `Key`.

        Raises:
            InvalidInput: the file cannot be read, or is not a list of keys.
        """
        if path is None:
            return cls(rate=rate, concurrency=concurrency)
        hint = 'It is a list of {"name": "web", "sha256": "<of the key>", "rate": "60/minute", "concurrency": 4}.'
        try:
            keys = TypeAdapter(list[Key]).validate_json(read_text(path, "keys"))
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidInput("keys", f"{path}: {where}: {first['msg']}.", hint=hint) from None
        if not keys:
            raise InvalidInput("keys", f"{path} holds no key.", hint=hint)
        return cls(keys, rate=rate, concurrency=concurrency)

    def owner(self, authorization: str) -> Owner:
        """The owner of a request's key.

        Raises:
            RequestRefused: 401, there are keys and the request has none of them.
        """
        if self._keyless is not None:
            return self._keyless
        scheme, _, shown = authorization.strip().partition(" ")
        # Headers are decoded as Latin-1: this gives the bytes that were sent. The digest is looked up, so that the timing does not depend
        # on the keys.
        owner = self._owners.get(hashlib.sha256(shown.strip().encode("latin-1", "replace")).hexdigest())
        if scheme.lower() != "bearer" or owner is None:
            message = "This key is not known here." if shown else "This service wants a key: send the header 'Authorization: Bearer KEY'."
            raise RequestRefused(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return owner

    @asynccontextmanager
    async def admitted(self, owner: Owner, pictures: int) -> AsyncIterator[Mapping[str, str]]:
        """Admit an owner's request for a number of pictures, while the context is open; gives the rate-limit headers.

        Raises:
            RequestRefused: 429, the owner's limit of concurrent requests or of pictures is reached.
            InvalidInput: the request alone is more than the limit of pictures.
        """
        if owner.at_work >= owner.concurrency:
            message = f"{owner.concurrency} requests of this key are at work already."
            raise _too_many(message, "concurrency_limit_exceeded", 1.0)
        owner.at_work += 1
        try:
            yield await self._count(owner, pictures)
        finally:
            owner.at_work -= 1

    async def _count(self, owner: Owner, pictures: int) -> Mapping[str, str]:
        if owner.rate is None:
            return {}
        if pictures > owner.rate.amount:
            raise InvalidInput("n", f"{pictures} is more than this key's {owner.rate.amount} pictures in {owner.rate.get_expiry()} s.")
        granted = await self._limiter.hit(owner.rate, owner.name, cost=pictures)
        reset, left = await self._limiter.get_window_stats(owner.rate, owner.name)
        headers = {
            "x-ratelimit-limit-images": str(owner.rate.amount),
            "x-ratelimit-remaining-images": str(max(0, left)),
            "x-ratelimit-reset-images": f"{max(0.0, reset - time()):.0f}s",
        }
        if not granted:
            message = f"This key may ask for {owner.rate.amount} pictures in {owner.rate.get_expiry()} s."
            raise _too_many(message, "rate_limit_exceeded", reset - time(), headers)
        return headers


def _too_many(message: str, code: str, wait: float, headers: Mapping[str, str] | None = None) -> RequestRefused:
    return RequestRefused(429, message, code, kind="rate_limit_error", headers={"Retry-After": seconds(wait), **(headers or {})})


def _rate(text: str) -> RateLimitItem | None:
    """A rate of pictures, such as ``60/minute`` or ``1000/2 hour``."""
    if not text.strip():
        return None
    try:
        if not re.fullmatch(r"\s*\d+\s*(/|per)\s*\d*\s*[a-z]+\s*", text) or (item := parse(text)).amount < 1:
            raise ValueError
    except ValueError:
        raise InvalidInput("rate", f"{text!r} is no rate.", hint="Write pictures and a time: 60/minute, 1000/hour.") from None
    return item
