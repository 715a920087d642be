"""The engine over a real JetStream with real worker processes: the same results as on one machine, whatever dies."""

import asyncio
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.errors import TimeoutError as NatsTimeout

from orchestrator.engine.engine import Engine
from orchestrator.engine.stages import Barrier, PerBatch, Progress
from orchestrator.engine.transport import Transport
from orchestrator.transports.jetstream import JetStreamTransport
from orchestrator.transports.local import LocalService, LocalTransport
from sfumato.errors import InvalidInput, PoisonTask, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.bus import ADVISORIES, CONSUMER, DEAD, Bus, DeadLetter, dead_subject, encoded, stream_of, task_subject
from sfumato.runtime.settings import BusSettings
from sfumato.runtime.tasks import Manifest, Task, find
from tests.unit.bus_system import System, running
from tests.unit.orchestrator.engine.test_engine import STAGES, Numbers

HANDLERS = "tests.unit.orchestrator.workers"


def _task(kind: str, *items: int, **params: float | str) -> Task:
    return Task(stage="s", kind=kind, items=items, params=params, model="m", model_reference="")


def _slowly(seconds: float) -> tuple[PerBatch, ...]:
    def task(_: None, __: Numbers, samples: tuple[int, ...]) -> Task:
        return _task("echo.slow", *samples, seconds=seconds)

    def taken(_: tuple[int, ...], done: Manifest) -> tuple[int, ...]:
        return tuple(done.values)

    return (PerBatch("first", "echo", task, taken), PerBatch("second", "echo", task, taken))


def _run(
    transport: Transport, artifacts: ArtifactStore, stages: tuple[PerBatch | Barrier, ...], notify: Callable[[Progress], None]
) -> Numbers:
    return Engine(None, 2, transport, artifacts, notify).run(stages, Numbers(tuple(range(1, 9))))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _ask(system: System, question: Callable[[Bus], object]) -> object:
    """Something that a bus answers."""

    async def ask() -> object:
        async with Bus(system.settings, "test") as bus:
            return await question(bus)  # pyright: ignore[reportGeneralTypeIssues]

    return asyncio.run(ask())


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_both_transports_end_in_the_same_bytes(tmp_path: Path) -> None:
    local = tmp_path / "local"
    with LocalTransport({"echo": LocalService(HANDLERS, workers=2)}, str(local)) as transport:
        expected = _run(transport, ArtifactStore(str(local)), STAGES, lambda _: None)
    with running(tmp_path, workers=2) as system, system.transport() as transport:
        assert _run(transport, system.artifacts, STAGES, lambda _: None) == expected
    assert _contents(tmp_path / "artifacts") == _contents(local)


def test_a_refusal_arrives_with_its_message_and_is_not_retried(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as system, system.transport() as transport:
        transport.submit(_task("echo.refuse", 1))
        with pytest.raises(InvalidInput, match="is odd. Make it even"):
            transport.next()
        transport.submit(_task("echo.double", 1))
        transport.next()
        assert system.done() == ["refuse"]


def test_a_task_without_a_handler_is_refused_by_name(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as system, system.transport() as transport:
        transport.submit(_task("echo.sing", 1))
        with pytest.raises(InvalidInput, match="echo.sing.*echo.double"):
            transport.next()


def test_what_was_away_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as system, system.transport() as transport:
        transport.submit(_task("echo.away", 1))
        assert transport.next().values == [1]
        assert system.done() == ["away", "away"]


def test_a_poison_task_is_set_aside_with_its_reason_and_the_rest_is_done(tmp_path: Path) -> None:
    poison = _task("echo.fail", 1)
    with running(tmp_path, workers=2) as system, system.transport() as transport:
        transport.submit(poison)
        for item in range(5):
            transport.submit(_task("echo.double", item))
        done = 0
        with pytest.raises(PoisonTask, match="3 tries.*the engine divided by zero") as poisoned:
            while True:
                transport.next()
                done += 1
        assert poisoned.value.task_id == poison.id
        for _ in range(5 - done):
            transport.next()
        assert system.done() == ["fail"] * 3
        letter = DeadLetter.model_validate_json(_ask(system, lambda bus: _letter(bus, poison)))  # pyright: ignore[reportArgumentType]
        assert (letter.deliveries, letter.failures, letter.failure.kind) == (3, 3, "ZeroDivisionError")
        assert Task.model_validate_json(letter.task) == poison
        _until(lambda: _ask(system, _queued) == 0)


async def _letter(bus: Bus, task: Task) -> bytes | None:
    return (await bus.js.get_last_msg(DEAD, dead_subject("echo", task.id))).data


async def _queued(bus: Bus) -> int:
    return (await bus.js.stream_info(stream_of("echo"))).state.messages


def test_failures_are_counted_whichever_worker_sees_them(tmp_path: Path) -> None:
    poison = _task("echo.fated", 1, script="fff")
    with running(tmp_path, retry_delay=0.5) as system, system.transport() as transport:
        transport.submit(poison)
        for count in (1, 2, 3):
            worker = system.worker()
            _until(lambda count=count: system.done() == ["fated"] * count)
            worker.terminate()  # in good order: it keeps the reason first
            assert worker.wait(30) == 0
        with pytest.raises(PoisonTask, match="3 tries.*in process"):
            transport.next()
        # A task that is put into the queue again starts with no failures.
        system.ledger.unlink()
        transport.submit(poison)
        system.worker()
        with pytest.raises(PoisonTask, match="3 tries.*in process"):
            transport.next()
        assert len(system.done()) == 3


def test_that_its_workers_were_killed_or_lacked_something_is_not_held_against_a_task(tmp_path: Path) -> None:
    with running(tmp_path, ack_wait=0.4) as system, system.transport() as transport:
        transport.submit(_task("echo.fated", 1, script="kfkakkkd"))
        for _ in range(5):
            assert system.worker().wait(60) == 9
        system.worker()
        assert transport.next().values == [8]
        assert _ask(system, _dead) == 0


def test_a_task_that_kills_its_workers_is_set_aside(tmp_path: Path) -> None:
    with running(tmp_path, deliveries=2, ack_wait=0.5) as system, system.transport() as transport:
        transport.submit(_task("echo.die", 1))
        for _ in range(2):
            assert system.worker().wait(60) == 9
        system.worker()  # the server publishes the advisory at the next pull
        with pytest.raises(PoisonTask, match="without reporting an error"):
            transport.next()


def test_a_message_that_is_no_task_is_set_aside(tmp_path: Path) -> None:
    async def vandal(bus: Bus) -> None:
        await bus.ensure("echo")
        await (await bus.send(task_subject("echo", "a" * 64), b"\xff{"))
        # Another task under this name.
        await (await bus.send(task_subject("echo", "b" * 64), encoded(_task("echo.double", 1))))

    with running(tmp_path, workers=1) as system, system.transport() as transport:
        _ask(system, vandal)
        _until(lambda: _ask(system, _dead) == 2)
        transport.submit(_task("echo.double", 1))
        assert transport.next().values == [2]


async def _dead(bus: Bus) -> int:
    return (await bus.js.stream_info(DEAD)).state.messages


def test_a_killed_workers_task_is_done_by_another_and_counted_once(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as system, system.transport() as transport:
        transport.submit(_task("echo.slow", 1, seconds=1.0))
        _until(lambda: system.done() == ["begin:1"])
        system.workers[0].kill()
        system.worker()
        assert transport.next().values == [2]
        assert system.done() == ["begin:1", "begin:1", "end:1"]
        transport.submit(_task("echo.double", 2))
        assert transport.next().values == [4]  # and no second result of the first


def test_a_worker_that_slept_past_its_time_does_no_harm(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as system, system.transport() as transport:
        task = _task("echo.slow", 1, seconds=0.5)
        transport.submit(task)
        _until(lambda: system.done() == ["begin:1"])
        system.workers[0].send_signal(signal.SIGSTOP)
        system.worker()
        first = transport.next()
        before = _contents(tmp_path / "artifacts")
        system.workers[0].send_signal(signal.SIGCONT)
        _until(lambda: system.done().count("end:1") == 2)
        for item in range(4):
            transport.submit(_task("echo.double", item))
        assert sorted(transport.next().values[0] for _ in range(4)) == [0, 2, 4, 6]
        assert {name: data for name, data in _contents(tmp_path / "artifacts").items() if name in before} == before
        assert find(task, system.artifacts) == first


def test_a_long_task_is_not_given_to_another_while_its_worker_lives(tmp_path: Path) -> None:
    with running(tmp_path, workers=2, ack_wait=1.5) as system, system.transport() as transport:
        transport.submit(_task("echo.slow", 1, seconds=4.0))
        transport.next()
        assert system.done() == ["begin:1", "end:1"]


def test_a_terminated_worker_finishes_its_task(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as system, system.transport() as transport:
        transport.submit(_task("echo.slow", 1, seconds=1.0))
        transport.submit(_task("echo.double", 5))
        _until(lambda: system.done() == ["begin:1"])
        system.workers[0].terminate()
        assert transport.next().values == [2]
        assert system.workers[0].wait(30) == 0
        system.worker()
        assert transport.next().values == [10]


def test_a_worker_out_of_time_gives_its_task_back(tmp_path: Path) -> None:
    with running(tmp_path, workers=1, ack_wait=60.0, grace=0.2) as system, system.transport() as transport:
        transport.submit(_task("echo.slow", 1, seconds=3.0))
        _until(lambda: system.done() == ["begin:1"])
        system.workers[0].terminate()
        assert system.workers[0].wait(30) == 0
        assert system.done() == ["begin:1"]
        system.worker()
        assert transport.next().values == [2]  # at once, and not after a minute


def test_a_server_killed_in_the_middle_of_a_run_is_waited_for(tmp_path: Path) -> None:
    with running(tmp_path, workers=2) as system, system.transport() as transport:
        state = _run(transport, system.artifacts, _slowly(0.1), _once(2, lambda: _restart(system)))
    assert state.samples == tuple(4 * n for n in range(1, 9))


def test_a_run_continues_after_the_server_lost_its_data(tmp_path: Path) -> None:
    def wipe() -> None:
        system.server.kill()
        shutil.rmtree(system.server.store)
        system.server.start()

    with running(tmp_path, workers=2) as system, system.transport() as transport:
        state = _run(transport, system.artifacts, _slowly(0.1), _once(3, wipe))
        assert state.samples == tuple(4 * n for n in range(1, 9))
        done = [word for word in system.done() if word.startswith("end")]
        # Eight tasks, and at most what two workers had in hand is done twice.
        assert len(set(done)) == 8 and len(done) <= 8 + 2


def _restart(system: System) -> None:
    system.server.kill()
    system.server.start()


def _once(count: int, what: Callable[[], None]) -> Callable[[Progress], None]:
    """Do something when so many micro-batches passed a stage."""
    seen: list[Progress] = []

    def notify(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == count:
            what()

    return notify


def test_a_bus_that_stays_away_is_an_error_with_advice(tmp_path: Path) -> None:
    with running(tmp_path, patience=1.0) as system, system.transport() as transport:
        transport.submit(_task("echo.double", 1))
        system.server.kill()
        with pytest.raises(Unavailable, match="run the same command again"):
            transport.next()


def test_no_bus_is_an_error_before_anything_is_done(tmp_path: Path) -> None:
    nowhere = BusSettings(url="nats://127.0.0.1:1", patience=0.5)
    with pytest.raises(Unavailable, match="does not answer"), JetStreamTransport(nowhere, ArtifactStore(str(tmp_path))):
        pass


def test_two_orchestrators_of_one_run_share_its_work_and_end_alike(tmp_path: Path) -> None:
    with running(tmp_path, workers=2) as system, system.transport() as one, system.transport() as other:
        tasks = [_task("echo.slow", item, seconds=0.05) for item in range(1, 11)]
        for task in tasks:
            one.submit(task)
            other.submit(task)
        heard = [sorted(transport.next().task_id for _ in tasks) for transport in (one, other)]
        assert heard[0] == heard[1] == sorted(task.id for task in tasks)
        assert len(system.done()) == 2 * len(tasks)  # each begun once and ended once


def test_a_result_that_was_not_announced_is_found_in_the_store(tmp_path: Path) -> None:
    with running(tmp_path) as system, system.transport() as deaf:
        task = _task("echo.slow", 1, seconds=0.0)
        deaf.submit(task)
        _until(lambda: _ask(system, _published) == 1)
        # The task is done elsewhere, and its message is removed without an announcement.
        service = LocalService(HANDLERS, environment={"TEST_LEDGER": str(system.ledger)})
        with LocalTransport({"echo": service}, str(tmp_path / "artifacts")) as local:
            local.submit(task)
            local.next()
        _ask(system, lambda bus: bus.js.purge_stream(stream_of("echo")))
        assert deaf.next().values == [2]


async def _published(bus: Bus) -> int:
    await bus.ensure("echo")
    return await _queued(bus)


def test_a_message_that_was_lost_is_published_again(tmp_path: Path) -> None:
    with running(tmp_path) as system, system.transport() as transport:
        transport.submit(_task("echo.double", 1))
        _until(lambda: _ask(system, _published) == 1)
        _ask(system, lambda bus: bus.js.purge_stream(stream_of("echo")))
        system.worker()
        assert transport.next().values == [2]


def test_a_message_that_will_never_be_given_out_is_replaced(tmp_path: Path) -> None:
    async def spend(bus: Bus) -> None:
        """Use up the only delivery while no stream keeps the advisory."""
        await bus.js.delete_stream(ADVISORIES)
        subscription = await bus.js.pull_subscribe_bind(CONSUMER, stream_of("echo"))
        assert len(await subscription.fetch(1)) == 1
        with pytest.raises(NatsTimeout):
            await subscription.fetch(1, timeout=1.0)

    with running(tmp_path, deliveries=1, ack_wait=0.3, look=0.3) as system, system.transport() as transport:
        transport.submit(_task("echo.double", 1))
        _until(lambda: _ask(system, _published) == 1)
        _ask(system, spend)
        system.worker()
        assert transport.next().values == [2]


def test_the_urgent_overtake_what_is_not_on_the_bus_yet(tmp_path: Path) -> None:
    with running(tmp_path, window=1) as system, system.transport() as transport:
        transport.submit(_task("echo.double", 1))
        _until(lambda: _ask(system, _published) == 1)
        for item, urgency in ((2, 0), (3, 1)):
            transport.submit(_task("echo.double", item), urgency)
        system.worker()
        assert [transport.next().values[0] for _ in range(3)] == [2, 6, 4]


def test_a_result_larger_than_a_message_comes_through_the_store(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as system, system.transport() as transport:
        transport.submit(_task("echo.bulk", *range(10)))
        assert len(transport.next().values) == 10
