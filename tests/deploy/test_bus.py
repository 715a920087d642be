"""The rendered bus: the real nats-server takes its configuration, lets each service do what it must, and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from nats.errors import Error as NatsError

from orchestrator.replica.index import DesiredState, Index
from sfumato.errors import Unavailable
from sfumato.runtime.bus import CONSUMER, DEAD, EVENTS, Bus, DeadLetter, Result, stream_of, task_subject
from sfumato.runtime.bus.nats_server import binary
from sfumato.runtime.bus.puller import Puller
from sfumato.runtime.failures import Failure
from sfumato.runtime.settings import BusSettings
from tests.deploy.charts import ALL, Object, rendered
from tests.deploy.pods import Pods, certified

TLS = ("--set", "tls.enabled=true", "--set", "tls.certManager.enabled=true")


def _pods(objects: tuple[Object, ...], folder: Path) -> Pods:
    folder.mkdir(exist_ok=True)
    return Pods(objects, folder, certified(objects, folder))


@pytest.mark.parametrize("more", [(), TLS], ids=["in the clear", "TLS"])
@pytest.mark.parametrize("preset", ALL)
def test_the_real_server_takes_the_configuration(preset: str, more: tuple[str, ...], tmp_path: Path) -> None:
    objects = rendered(preset, *more, "--set", "secrets.bus=")
    config = _pods(objects, tmp_path / "pods").bus_config()
    done = subprocess.run([binary(), "-t", "--config", str(config)], env={"POD_NAME": "sfumato-nats-0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    """The server of the small preset, up."""
    folder = tmp_path_factory.mktemp("bus")
    pods = _pods(rendered("vista-cpu"), folder / "pods")
    process = pods.start_bus()
    yield pods
    process.terminate()
    process.wait()


def _settings(pods: Pods, user: str, password: str = "", **values: object) -> BusSettings:
    given = pods.mounted(user) / "run/secrets/sfumato/SFUMATO_BUS_PASSWORD"
    url = f"nats://127.0.0.1:{pods.ports[4222]}"
    return BusSettings.model_validate({"url": url, "user": user, "password": password or given.read_text(), "patience": 30.0, **values})


def test_a_worker_and_the_orchestrator_do_their_work_with_what_they_may(server: Pods) -> None:
    async def work() -> None:
        async with Bus(_settings(server, "orchestrator"), "o") as bus, Bus(_settings(server, "scoring"), "w") as worker:
            await asyncio.sleep(0)
            await bus.ensure("scoring")
            await worker.ensure("scoring")  # finds all of it, or creates it if it is first
            results = await bus.client.subscribe("sfumato.results.*")
            for task in ("1", "2"):
                await (await bus.send(task_subject("scoring", task), b"a task"))
            puller = Puller(worker, stream_of("scoring"), CONSUMER)
            await puller.open()
            first, second = [(await puller.take(1))[0] for _ in range(2)]
            await first.in_progress()
            await worker.announce([Result(task_id="1", service="scoring")])
            await first.ack_sync()
            failure = Failure(kind="X", message="it failed")
            await worker.failed("scoring", "2", 2, failure)
            assert (await worker.last_attempt("scoring", "2")).failures == 1  # pyright: ignore[reportOptionalMemberAccess]
            letter = DeadLetter(task_id="2", service="scoring", deliveries=1, failures=1, failure=failure, task="a task")
            await worker.set_aside(letter)
            await second.term()
            assert Result.model_validate_json((await results.next_msg(10)).data).task_id == "1"
            index = Index(bus, lease=5.0)
            assert await index.change("r-1", lambda _: DesiredState(wanted="run")) and await index.all_desired()
            assert await index.take("r-1", "me")
            await index.publish("r-1", 1, [])
            assert (await bus.js.consumer_info(stream_of("scoring"), CONSUMER)).num_pending == 0
            await bus.js.purge_stream(stream_of("scoring"), subject=task_subject("scoring", "2"))

    asyncio.run(work())


FORBIDDEN: dict[str, Callable[[Bus], Awaitable[object]]] = {
    "purge": lambda bus: bus.js.purge_stream(EVENTS),
    "delete": lambda bus: bus.js.delete_stream(stream_of("scoring")),
    "look": lambda bus: bus.js.stream_info(DEAD),
    "another's queue": lambda bus: bus.ensure("trainer"),
    "another's task": lambda bus: bus.js.get_msg(stream_of("trainer"), 1),
    "a task": lambda bus: bus.js.publish(task_subject("scoring", "3"), b"of its own making"),
    "another's result": lambda bus: bus.js.publish("sfumato.results.trainer", b"{}"),
    "a desired state": lambda bus: bus.js.publish("$KV.sfumato-wishes.r-1", b"{}"),
}


def test_a_worker_may_do_nothing_that_is_not_its_own(server: Pods) -> None:
    async def refused(act: Awaitable[object]) -> bool:
        try:
            await asyncio.wait_for(act, 2.0)
        except TimeoutError:  # the server says nothing to what is forbidden; any other end would be an answer
            return True
        return False

    async def work() -> None:
        async with Bus(_settings(server, "orchestrator"), "o") as bus:
            await bus.ensure("scoring")
            await bus.ensure("trainer")
        async with Bus(_settings(server, "scoring"), "w") as worker:
            assert all(await asyncio.gather(*(refused(act(worker)) for act in FORBIDDEN.values())))

    asyncio.run(work())


def test_three_servers_find_each_other_under_tls_and_keep_every_stream_three_times(tmp_path: Path) -> None:
    objects = rendered("", *TLS)
    secrets = certified(objects, tmp_path)
    servers = [Pods(objects, tmp_path / str(number), secrets) for number in range(3)]
    for number in range(3):
        (tmp_path / str(number)).mkdir()
    running = [pods.start_bus(number, servers) for number, pods in enumerate(servers)]
    urls = ",".join(f"tls://localhost:{pods.ports[4222]}" for pods in servers)

    async def work() -> None:
        settings = _settings(servers[0], "orchestrator", url=urls, ca=tmp_path / "authority.pem", replicas=3)
        async with Bus(settings, "o") as bus:
            async with asyncio.timeout(60):
                while True:  # they have to choose a leader first
                    try:
                        await bus.ensure("scoring")
                        break
                    except (NatsError, TimeoutError):
                        await asyncio.sleep(0.2)
            info = await bus.js.stream_info(stream_of("scoring"))
            assert info.config.num_replicas == 3 and len((info.cluster and info.cluster.replicas) or []) == 2
            running[2].kill()
            async with asyncio.timeout(60):
                while True:  # the client may have to go to another server, and the stream to choose another leader
                    try:
                        await (await bus.send(task_subject("scoring", "1"), b"a task"))
                        break
                    except NatsError:
                        await asyncio.sleep(0.2)

    try:
        asyncio.run(work())
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_replies_to_other_users_cannot_be_read(server: Pods) -> None:
    async def listen() -> None:
        async with Bus(_settings(server, "scoring"), "w") as worker:
            heard: list[bytes] = []

            async def hear(message) -> None:
                heard.append(message.data)

            await worker.client.subscribe("_INBOX.orchestrator.>", cb=hear)
            await worker.client.subscribe("sfumato.>", cb=hear)
            await worker.client.flush()
            async with Bus(_settings(server, "orchestrator"), "o") as bus:
                await bus.ensure("scoring")
                await bus.announce([Result(task_id="1", service="scoring")])
            await worker.client.flush()
            assert not heard

    asyncio.run(listen())


def test_a_client_without_a_name_or_with_a_wrong_password_is_refused(server: Pods) -> None:
    async def enter(settings: BusSettings) -> None:
        async with Bus(settings, "stranger"):
            pass

    started = time.monotonic()
    for settings in (_settings(server, "scoring", password="wrong"), _settings(server, "scoring").model_copy(update={"user": ""})):
        with pytest.raises(Unavailable, match="refuses the credentials"):
            asyncio.run(enter(settings))
    assert time.monotonic() - started < 60
