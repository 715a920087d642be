"""Keys and their limits."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.inference.http.errors import RequestRefused
from services.inference.http.keys import KEYLESS, Key, Keyring
from sfumato.errors import InvalidInput


def ring(**more: object) -> Keyring:
    web = {"name": "web", "sha256": hashlib.sha256(b"right").hexdigest(), **more}
    keys = [Key.model_validate(web), Key(name="other", sha256=hashlib.sha256(b"2").hexdigest())]
    return Keyring(keys, rate="100/minute", concurrency=3)


def test_who_asks_is_told_by_the_key_alone() -> None:
    assert ring().owner("Bearer right").name == "web" and ring().owner("bearer  2 ").name == "other"
    assert Keyring().owner("").name == KEYLESS and Keyring().owner("Bearer whatever").name == KEYLESS
    for shown in ("", "right", "Bearer", "Bearer wrong", "Basic right", "Bearer right right"):
        with pytest.raises(RequestRefused) as caught:
            ring().owner(shown)
        assert caught.value.status == 401 and caught.value.headers["WWW-Authenticate"] == "Bearer"
        assert "wrong" not in caught.value.message


async def take(keys: Keyring, shown: str, pictures: int) -> Mapping[str, str]:
    async with keys.admitted(keys.owner(shown), pictures) as headers:
        return headers


def test_pictures_in_a_time_are_limited_for_each_key() -> None:
    async def scenario() -> None:
        keys = ring(rate="5/hour")
        assert (await take(keys, "Bearer right", 3))["x-ratelimit-remaining-images"] == "2"
        with pytest.raises(RequestRefused) as caught:
            await take(keys, "Bearer right", 3)
        assert caught.value.status == 429 and caught.value.code == "rate_limit_exceeded"
        assert 3000 < int(caught.value.headers["Retry-After"]) <= 3600
        assert (await take(keys, "Bearer right", 2))["x-ratelimit-remaining-images"] == "0"  # what was refused was not counted
        await take(keys, "Bearer 2", 50)
        with pytest.raises(InvalidInput, match="^n:"):
            await take(keys, "Bearer right", 6)

    asyncio.run(scenario())


def test_requests_at_once_are_limited_for_each_key() -> None:
    async def scenario() -> None:
        keys = ring(concurrency=1)
        owner = keys.owner("Bearer right")
        async with keys.admitted(owner, 1):
            with pytest.raises(RequestRefused) as caught:
                await take(keys, "Bearer right", 1)
            assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
            await take(keys, "Bearer 2", 1)
        await take(keys, "Bearer right", 1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        '[{"name": "a"}]',
        '[{"name": "a", "sha256": "zz"}]',
        '[{"name": "a", "key": "secret-value", "sha256": "%s"}]' % ("0" * 64),
        json.dumps([{"name": "a", "sha256": "0" * 64, "rate": "often"}]),
        json.dumps([{"name": "a", "sha256": "0" * 64}, {"name": "a", "sha256": "1" * 64}]),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        Keyring.read(tmp_path / "keys.json")
    assert "secret-value" not in str(caught.value)
    with pytest.raises(InvalidInput):
        Keyring.read(tmp_path / "absent.json")
