"""A bus that refuses for a reason that lasts: it is said within the patience, and the run ends with what to do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from nats.js.api import DiscardPolicy
from nats.js.errors import APIError

from orchestrator.replica.index import DesiredState, Index
from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.errors import Blocked, InvalidInput, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import Bus, gone, present, task_subject
from sfumato.runtime.failures import Failure
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Task
from tests.unit.bus_system import HANDLERS, QUICK, ROOT, System, running
from tests.unit.nats_servers import allow, nats
from tests.unit.orchestrator.transports.test_jetstream import _until

JETSTREAM = "jetstream { store_dir: STORE }\n"
USER = {"user": "u", "password": "p"}
ACCOUNT = "jetstream {{ store_dir: STORE }}\naccounts {{ A {{ {limits} users: [{{user: u, password: p}}] }} }}\n"
PERMISSIONS = "user: u, password: p, permissions: {{ publish: {{ deny: [{denied}] }} }}"
DENYING = "jetstream {{ store_dir: STORE }}\nauthorization {{ users: [{{ " + PERMISSIONS + " }}] }}\n"

LASTING: dict[str, tuple[str, Mapping[str, str | int], str]] = {
    "a store that is too small": ("jetstream { store_dir: STORE, max_file_store: 100KB }", {}, "its store is full.*Enlarge max_file_store"),
    "an account without room": (ACCOUNT.format(limits="jetstream: { max_file: 1MB, max_mem: 1MB },"), USER, "refuses: .*Raise|Enlarge"),
    "an account with few streams": (
        ACCOUNT.format(limits="jetstream: { max_streams: 1 },"),
        USER,
        "limits of its account.*Raise the limits",
    ),
    "an account without JetStream": (ACCOUNT.format(limits=""), USER, "JetStream is not enabled.*Enable jetstream"),
    "a user without rights": (DENYING.format(denied='"$JS.API.STREAM.>"'), USER, "permissions violation.*SFUMATO_BUS_USER"),
    "a user who may not publish tasks": (DENYING.format(denied='"sfumato.tasks.>"'), USER, "permissions violation.*sfumato.tasks"),
    "a user without JetStream's rights": (DENYING.format(denied='"$JS.>"'), USER, "permissions violation"),
    "more replicas than servers": (JETSTREAM, {"replicas": 3}, "fewer servers.*SFUMATO_BUS_REPLICAS"),
}


def _settings(url: str, **values: str | int | float) -> BusSettings:
    return BusSettings.model_validate({"url": url, **QUICK, "patience": 1.5, **values})


def _task(kind: str = "echo.double", *items: int | str) -> Task:
    return Task(stage="paint", kind=kind, items=items or (1,), params={}, model="m", model_reference="")


@pytest.mark.parametrize("why", LASTING)
def test_a_run_ends_with_what_to_do(why: str, tmp_path: Path) -> None:
    config, values, words = LASTING[why]
    with nats(tmp_path, config) as url, JetStreamTransport(_settings(url, **values), ArtifactStore(str(tmp_path / "a"))) as transport:
        transport.submit(_task())
        with pytest.raises(Blocked, match=f"(?s){words}"):
            transport.next()


@pytest.mark.parametrize("why", ["a store that is too small", "a user without rights", "an account without JetStream"])
def test_a_worker_ends_with_what_to_do(why: str, tmp_path: Path) -> None:
    config, values, words = LASTING[why]
    with nats(tmp_path, config) as url:
        system = System(tmp_path, None, _settings(url, **values))  # pyright: ignore[reportArgumentType] (no server of its own)
        line = [sys.executable, "-m", "sfumato.runtime.bus.worker", "--service", "echo", "--handlers", HANDLERS]
        done = subprocess.run(line, env=system.environment(), capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "refuses" in done.stderr.splitlines()[-1] and words.partition(".*")[0] in done.stderr.splitlines()[-1]


def test_a_refusal_that_ends_within_the_patience_ends_no_run(tmp_path: Path) -> None:
    config = DENYING.format(denied='"sfumato.tasks.>"')
    with nats(tmp_path, config) as url:
        settings = _settings(url, **USER, patience=60.0)
        system = System(tmp_path, None, settings)  # pyright: ignore[reportArgumentType] (no server of its own)
        with system.ending(), JetStreamTransport(settings, system.artifacts) as transport:
            transport.submit(_task("echo.double", 21))
            _until(lambda: bool(transport._refusals))
            allow(tmp_path, config, DENYING.format(denied='"other"'))
            system.worker()
            assert transport.next().values == [42]


def test_a_full_stream_is_told_apart_from_a_task_that_is_in_the_queue(tmp_path: Path) -> None:
    async def check(url: str) -> None:
        async with Bus(_settings(url), "test") as bus:
            await bus.ensure("echo")
            await bus.js.add_stream(name="small", subjects=["small"], max_bytes=2000, discard=DiscardPolicy.NEW)
            with pytest.raises(APIError) as full:
                for _ in range(9):
                    await (await bus.send("small", bytes(900)))
            refused = bus.refusal(full.value)
            assert (
                refused is not None and "a stream is full (maximum bytes exceeded)" in refused.message and "max_file_store" in refused.hint
            )
            with pytest.raises(APIError) as held:
                for _ in range(2):
                    await (await bus.send(task_subject("echo", "1"), b"x"))
            assert present(held.value) and bus.refusal(held.value) is None and not gone(held.value)

    with nats(tmp_path, JETSTREAM) as url:
        asyncio.run(check(url))


@pytest.mark.parametrize("size", [100_000, 200_000, 262_144])
def test_the_servers_limit_of_a_message_is_the_limit_of_a_task(size: int, tmp_path: Path) -> None:
    with nats(tmp_path, f"max_payload: {size}\n{JETSTREAM}") as url:
        settings, store = _settings(url), ArtifactStore(str(tmp_path / "a"))
        if size < 196_608:
            with pytest.raises(Blocked, match=f"messages of {size} bytes.*Raise max_payload"), JetStreamTransport(settings, store):
                raise AssertionError("it connects")
            return
        with JetStreamTransport(settings, store) as transport:
            transport.submit(_task("echo.double", "x" * 60_000))
            with pytest.raises(InvalidInput, match="batch: .*'paint'.*smaller, or raise max_payload"):
                transport.submit(_task("echo.double", "x" * (size - 100_000)))


def test_the_state_of_runs_cannot_be_kept_and_the_caller_is_told_why(tmp_path: Path) -> None:
    async def change(settings: BusSettings) -> None:
        async with Bus(settings, "test") as bus:
            await Index(bus, lease=5.0).change("x", lambda _: DesiredState(wanted="run"))

    for config, values, kind, words in (
        (JETSTREAM, {"replicas": 3}, Blocked, "fewer servers"),
        (DENYING.format(denied='"$JS.API.STREAM.CREATE.KV_>", "$KV.>"'), USER, Blocked, "permissions violation"),
        ("", {}, Unavailable, "JetStream"),
    ):
        with nats(tmp_path / str(len(config)), config) as url, pytest.raises(kind, match=words):
            asyncio.run(change(_settings(url, **values)))


def test_a_store_of_results_that_refuses_ends_the_run(tmp_path: Path) -> None:
    with running(tmp_path, patience=1.5, retry_delay=0.2) as system, system.transport() as transport:
        (tmp_path / "artifacts" / "manifests").write_text("a file where a folder should be")  # as a disk that takes no file
        system.worker()
        transport.submit(_task("echo.double", 2))
        with pytest.raises(Unavailable, match="artifact store .* cannot be"):
            transport.next()


def test_a_refusal_keeps_its_kind_over_the_bus() -> None:
    error = Blocked("The artifact store is full.", hint="Make room.")
    again = Failure.of(error).error()
    assert type(again) is Blocked and str(again) == str(error)
