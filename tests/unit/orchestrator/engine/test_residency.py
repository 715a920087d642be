"""On a device that holds one model, a barrier's service is alone: every other service is ended before its tasks begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.engine.engine import Engine
from orchestrator.engine.stages import Barrier, Loop, PerBatch
from orchestrator.transports.local import LocalService, LocalTransport
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Manifest, Task

SERVICES = ("generator", "scoring", "trainer")
MODULE = "tests.unit.orchestrator.engine.resident"


@dataclass(frozen=True)
class State:
    """The samples, and what the workers of every barrier saw, in order."""

    samples: Sequence[int] = (1, 2, 3, 4)
    seen: tuple[tuple[str, int, int], ...] = ()

    def with_samples(self, samples: Sequence[int]) -> State:
        return replace(self, samples=samples)


def task(stage: str, service: str, state: State, item: int) -> Task:
    passed = len(state.seen)  # so that the second iteration's tasks are others
    return Task(stage=stage, kind=f"{service}.look", items=(item,), params={"stage": stage, "passed": passed}, model="", model_reference="")


def per_batch(name: str, service: str, seen: list[int]) -> PerBatch[Any, State, int]:
    def absorb(samples: tuple[int, ...], done: Manifest) -> tuple[int, ...]:
        seen.append(done.values[0]["resident"])
        return samples

    return PerBatch(name, service, lambda _, state, samples: task(name, service, state, samples[0]), absorb)


def barrier(name: str, service: str) -> Barrier[Any, State]:
    def absorb(_: Any, state: State, done: list[Manifest]) -> State:
        found = done[0].values[0]
        return replace(state, seen=(*state.seen, (name, found["resident"], found["process"])))

    return Barrier(name, lambda _, state: [task(name, service, state, 0)], absorb, services=(service,))


def run(folder: Path, *, keep: bool) -> tuple[State, list[int]]:
    """Two iterations of a flow through two services, two barriers of the trainer and one of the generator."""
    in_flow: list[int] = []
    stages = (
        per_batch("paint", "generator", in_flow),
        per_batch("score", "scoring", in_flow),
        barrier("train", "trainer"),
        barrier("average", "trainer"),
        barrier("paint_heldout", "generator"),
    )

    def again(_: Any, state: State) -> bool:
        return len(state.seen) < 6

    loop: Loop[Any, State] = Loop("iteration", stages, again=again, most=lambda _: 2)
    services = {name: LocalService(MODULE, keep=keep) for name in SERVICES}
    store = ArtifactStore(str(folder))
    with LocalTransport(services, str(folder)) as transport:
        engine = Engine(SimpleNamespace(), 2, transport, store, lambda _: None)
        return engine.run([loop], State()), in_flow


def test_a_barrier_has_the_device_for_itself(tmp_path: Path) -> None:
    state, in_flow = run(tmp_path, keep=False)
    assert [(name, resident) for name, resident, _ in state.seen] == 2 * [("train", 1), ("average", 1), ("paint_heldout", 1)]
    assert max(in_flow) == 2, "the trainer is ended before the next iteration paints"
    processes = {name: process for name, _, process in state.seen[:3]}
    assert processes["train"] == processes["average"], "a service that the next barrier needs stays"


def test_services_that_are_kept_stay_resident(tmp_path: Path) -> None:
    state, _ = run(tmp_path, keep=True)
    assert [resident for _, resident, _ in state.seen][-1] == 3
    trainers = {process for name, _, process in state.seen if name != "paint_heldout"}
    assert len(trainers) == 1, "one process for the whole run"
