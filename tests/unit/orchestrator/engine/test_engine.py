"""The engine with real worker processes: order kept, work reused, failures told."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.engine.engine import Engine
from orchestrator.engine.stages import Barrier, Loop, PerBatch, Progress, Waiting
from orchestrator.transports.local import LocalService, LocalTransport
from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Manifest, Output, Task, perform


@dataclass(frozen=True)
class Numbers:
    samples: Sequence[int]
    total: int = 0

    def with_samples(self, samples: Sequence[int]) -> "Numbers":
        return replace(self, samples=samples)


def _task(kind: str, items: tuple[int, ...]) -> Task:
    return Task(stage="s", kind=kind, items=items, params={}, model="m", model_reference="")


def _transport(folder: Path) -> LocalTransport:
    return LocalTransport({"echo": LocalService("tests.unit.orchestrator.workers", workers=2)}, str(folder))


def _double(_: None, __: Numbers, samples: tuple[int, ...]) -> Task:
    return _task("echo.double", samples)


def _doubled(_: tuple[int, ...], done: Manifest) -> tuple[int, ...]:
    return tuple(done.values)


def _summed(_: None, state: Numbers, done: list[Manifest]) -> Numbers:
    return replace(state, total=sum(done[0].values))


STAGES = (
    PerBatch("double", "echo", _double, _doubled),
    PerBatch("again", "echo", _double, _doubled),
    Barrier("sum", lambda _, state: [_task("echo.double", tuple(state.samples))], _summed),
)


def _run(folder: Path, stages: tuple[PerBatch | Barrier | Loop, ...] = STAGES) -> tuple[Numbers, list[Progress]]:
    events: list[Progress] = []
    with _transport(folder) as transport:
        state = Engine(None, 3, transport, ArtifactStore(str(folder)), events.append).run(stages, Numbers(tuple(range(7))))
    return state, events


def test_samples_pass_every_stage_and_keep_their_order(tmp_path: Path) -> None:
    state, events = _run(tmp_path)
    assert state.samples == tuple(4 * n for n in range(7))
    assert state.total == 8 * sum(range(7))
    assert [event.stage.name for event in events if event.done == event.total][-1] == "sum"


def test_a_second_run_reuses_everything(tmp_path: Path) -> None:
    first, _ = _run(tmp_path)
    second, events = _run(tmp_path)
    assert second == first
    assert all(event.reused == event.done for event in events)


def test_a_loop_goes_round_on_the_state_of_its_last_round_and_reuses_it(tmp_path: Path) -> None:
    def small(_: None, state: Numbers) -> bool:
        return state.total < 100

    stages = (Loop("round", (STAGES[0], STAGES[2]), small, most=lambda _: 2),)
    first, _ = _run(tmp_path, stages)
    assert first.samples == tuple(4 * n for n in range(7))  # doubled twice; the sum is of twice that
    assert first.total == 168
    second, events = _run(tmp_path, stages)
    assert second == first
    assert all(event.reused == event.done for event in events)


def test_a_persons_task_holds_the_run_until_its_manifest_is_there(tmp_path: Path) -> None:
    question = _task("person.ask", (1,))
    ask = Barrier("ask", lambda _, __: [question], lambda _, state, done: replace(state, total=done[0].values[0]), asks=lambda _, tasks: [])
    with pytest.raises(Waiting) as waiting:
        _run(tmp_path, (STAGES[0], ask))
    assert waiting.value.tasks == (question,)
    perform(question, lambda _, __: Output([42]), ArtifactStore(str(tmp_path)), {})
    assert _run(tmp_path, (STAGES[0], ask))[0].total == 42


def test_the_urgent_overtake_what_has_not_begun(tmp_path: Path) -> None:
    with LocalTransport({"echo": LocalService("tests.unit.orchestrator.workers", workers=1)}, str(tmp_path)) as transport:
        for item, urgency in ((1, 0), (2, 0), (3, 1)):
            transport.submit(_task("echo.double", (item,)), urgency)
        assert [transport.next().values[0] for _ in range(3)] == [2, 6, 4]


def test_the_time_a_worker_was_at_work_is_known(tmp_path: Path) -> None:
    with _transport(tmp_path) as transport:
        transport.submit(_task("echo.double", (1,)))
        transport.next()
        assert 0 < transport.busy_share() < 1


def test_a_kept_service_outlives_its_release(tmp_path: Path) -> None:
    with LocalTransport({"echo": LocalService("tests.unit.orchestrator.workers", keep=True)}, str(tmp_path)) as transport:
        transport.submit(_task("echo.process", (1,)))
        first = transport.next().values
        transport.release("echo")
        transport.submit(_task("echo.process", (2,)))
        assert transport.next().values == first


def test_a_workers_refusal_arrives_with_its_message(tmp_path: Path) -> None:
    with _transport(tmp_path) as transport:
        transport.submit(_task("echo.refuse", (1,)))
        with pytest.raises(InvalidInput, match="is odd. Make it even"):
            transport.next()


def test_a_dead_worker_is_an_error_and_not_a_silence(tmp_path: Path) -> None:
    with _transport(tmp_path) as transport:
        transport.submit(_task("echo.die", (1,)))
        with pytest.raises(Unavailable, match="code 9"):
            transport.next()


def test_ending_a_busy_service_does_not_hold_up_another(tmp_path: Path) -> None:
    module = "tests.unit.orchestrator.workers"
    services = {name: LocalService(module, workers=2) for name in ("echo", "other")}
    with LocalTransport(services, str(tmp_path)) as transport:
        for item in range(20):
            transport.submit(_task("echo.bulk", (item,)))
        transport.next()
        transport.submit(_task("other.double", (1,)))
        transport.release("echo")
        assert transport.next().values == [2]


def test_only_so_many_batches_are_on_their_way_at_once_and_the_result_is_the_same(tmp_path: Path) -> None:
    class Counting(LocalTransport):
        out, most = 0, 0

        def submit(self, task: Task, urgency: int = 0) -> None:
            self.out += 1
            self.most = max(self.most, self.out)
            super().submit(task, urgency)

        def next(self) -> Manifest:
            self.out -= 1
            return super().next()

    results = []
    for at_once in (1, 4, 512):
        folder = tmp_path / str(at_once)
        counting = Counting({"echo": LocalService("tests.unit.orchestrator.workers", workers=2)}, str(folder))
        with counting as transport:
            engine = Engine(None, 3, transport, ArtifactStore(str(folder)), lambda _: None, at_once)
            results.append(engine.run(STAGES, Numbers(tuple(range(50)))))
            assert counting.most == min(at_once, 17)
    assert results[0] == results[1] == results[2]
    assert list(results[0].samples) == [4 * n for n in range(50)]


def test_an_observer_may_stop_the_run_and_finished_tasks_are_kept(tmp_path: Path) -> None:
    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), _transport(tmp_path) as transport:
        Engine(None, 3, transport, ArtifactStore(str(tmp_path)), stop).run(STAGES, Numbers(tuple(range(7))))
    assert sum(event.reused for event in _run(tmp_path)[1] if event.stage.name == "double" and event.done == event.total) >= 1
