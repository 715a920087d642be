"""One orchestrator of a run, as a process that may be killed: `python -m tests.chaos.replica FILE`. It ends with the state in FILE."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.engine.engine import Engine
from orchestrator.engine.stages import Barrier, PerBatch
from orchestrator.engine.transport import Transport
from orchestrator.transports.jetstream import JetStreamTransport
from sfumato.errors import PoisonTask
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.settings import BusSettings, Settings
from sfumato.runtime.tasks import Manifest, Task

SAMPLES = tuple(range(1, 21))
BATCH = 2
SECONDS = 0.5
"""How long a task takes: long enough to be killed in."""


@dataclass(frozen=True)
class Numbers:
    """The run so far."""

    samples: Sequence[int]
    total: int = 0

    def with_samples(self, samples: Sequence[int]) -> "Numbers":
        return replace(self, samples=samples)


def _task(*items: int) -> Task:
    return Task(stage="s", kind="echo.slow", items=items, params={"seconds": SECONDS}, model="m", model_reference="")


def _slow(_: None, __: Numbers, samples: tuple[int, ...]) -> Task:
    return _task(*samples)


def _slowed(_: tuple[int, ...], done: Manifest) -> tuple[int, ...]:
    return tuple(done.values)


STAGES = (
    PerBatch("first", "echo", _slow, _slowed),
    PerBatch("second", "echo", _slow, _slowed),
    Barrier(
        "pairs",
        lambda _, state: [_task(100 + sample) for sample in state.samples[:5]],
        lambda _, state, done: replace(state, total=sum(one.values[0] for one in done)),
    ),
)
TASKS = 2 * len(SAMPLES) // BATCH + 5
POISON = Task(stage="poison", kind="echo.fail", items=(1,), params={}, model="m", model_reference="")


def run(transport: Transport, artifacts: ArtifactStore) -> Numbers:
    """The recipe, over any transport."""
    return Engine(None, BATCH, transport, artifacts, lambda _: None).run(STAGES, Numbers(SAMPLES))


def main(target: Path) -> None:
    """Run it over the bus, then a poisoned task that must be told of."""
    artifacts = ArtifactStore(Settings().artifacts_url)
    with JetStreamTransport(BusSettings(), artifacts) as transport:
        state = run(transport, artifacts)
        transport.submit(POISON)
        try:
            transport.next()
        except PoisonTask as error:
            target.write_text(json.dumps({"samples": list(state.samples), "total": state.total, "poison": error.task_id}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
