"""The embedded server: healthy when started, with the same content after a crash."""

import asyncio
import threading
from pathlib import Path

import pytest

from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.bus import Bus, stream_of, task_subject
from sfumato.runtime.bus.nats_server import NatsServer
from sfumato.runtime.settings import BusSettings


def _settings(server: NatsServer, **values: object) -> BusSettings:
    return BusSettings(**{"url": server.url, "patience": 5.0, **values})  # pyright: ignore[reportArgumentType]


async def _put(server: NatsServer) -> None:
    async with Bus(_settings(server), "test") as bus:
        await bus.ensure("echo")
        await (await bus.send(task_subject("echo", "1"), b"one"))


async def _stored(server: NatsServer, **values: object) -> bytes | None:
    async with Bus(_settings(server, **values), "test") as bus:
        return (await bus.js.get_msg(stream_of("echo"), 1)).data


def test_what_was_stored_outlives_a_crash_on_the_same_port(tmp_path: Path) -> None:
    with NatsServer(tmp_path, sync="always") as server:
        asyncio.run(_put(server))
        address = server.url
        server.kill()
        with pytest.raises(Unavailable, match="ended with code -9"):
            server.check()
        server.start()
        assert server.url == address
        assert asyncio.run(_stored(server)) == b"one"
        assert server.store.is_dir()


def test_another_process_finds_what_was_stored_in_the_same_folder(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as first:
        asyncio.run(_put(first))
    port = int(first.url.rpartition(":")[2])
    with NatsServer(tmp_path, port=port) as second:
        assert second.url == first.url
        assert asyncio.run(_stored(second)) == b"one"


def test_a_client_without_the_token_is_refused_at_once(tmp_path: Path) -> None:
    with NatsServer(tmp_path, token='se"cret') as server:
        with pytest.raises(Unavailable, match="refuses the credentials"):
            asyncio.run(_stored(server, token="wrong", patience=60.0))
        asyncio.run(_enter(server))
    assert (tmp_path / "nats-server.conf").stat().st_mode & 0o077 == 0


async def _enter(server: NatsServer) -> None:
    async with Bus(_settings(server, token='se"cret'), "test") as bus:
        await bus.ensure("echo")


def test_an_invalid_interval_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="sync"):
        NatsServer(tmp_path, sync="always }")


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "first") as first:
        second = NatsServer(tmp_path / "second", port=int(first.url.rpartition(":")[2]))
        with pytest.raises(Unavailable, match="address already in use"):
            second.start()


def test_a_second_server_on_the_same_folder_waits_for_the_first_and_is_refused_if_it_stays(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as first:
        asyncio.run(_put(first))
        refused = NatsServer(tmp_path, ready=0.3)
        with pytest.raises(Unavailable, match=f"Another nats-server runs on {tmp_path}"):
            refused.start()
        refused.stop()
        ending = threading.Timer(0.5, first.stop)
        ending.start()
        with NatsServer(tmp_path) as second:
            assert asyncio.run(_stored(second)) == b"one"
        ending.join()


def test_no_server_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        pass
    with pytest.raises(Unavailable, match="SFUMATO_BUS_URL"):
        asyncio.run(_stored(server, patience=0.5))
