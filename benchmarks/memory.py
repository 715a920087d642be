"""Does a run of many samples take more memory than one of few? Peak resident memory of the process that orchestrates it.

    python benchmarks/memory.py [--full] [--json]

The engine is the run's own and so are tasks, manifests, the artifact store and the run's events; the workers are a function
that returns at once, so that only the orchestrator is measured. Every size has a separate process. 1 thousand, 10 thousand
and 100 thousand samples; with ``--full`` 1 million.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from orchestrator.engine.engine import Engine
from orchestrator.engine.stages import Barrier, PerBatch, Progress
from orchestrator.recipes.artaug import RECIPE
from orchestrator.recipes.artaug.pairs import generate, select
from orchestrator.recipes.artaug.spec import ArtAugSpec
from orchestrator.recipes.artaug.state import KEPT, ArtAugPlan, Sample, State, start
from orchestrator.recipes.artaug.tuning import nothing
from orchestrator.recipes.events import EventBuilder
from orchestrator.recipes.inputs import held
from orchestrator.recipes.models import Model
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.tasks import Painted, paint, painted
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Manifest, Task
from sfumato.types import Region

SIZES = (1_000, 10_000, 100_000)
FULL = 1_000_000
BATCH = 8


class AtOnce:
    """A transport whose workers need no time, and an empty store that keeps nothing."""

    def __init__(self) -> None:
        self._waiting: deque[Task] = deque()

    def prepare(self, services: Iterable[str]) -> None:
        """Nothing has to start."""

    def submit(self, task: Task, urgency: int = 0) -> None:
        """Keep it."""
        self._waiting.append(task)

    def next(self) -> Manifest:
        """The first one's."""
        task = self._waiting.popleft()
        files = {f"{index}.{kind}": f"{task.id[:-2]}{index:02d}" for index in range(len(task.items)) for kind in ("png", "safetensors")}
        return Manifest(
            task_id=task.id, kind=task.kind, items=task.items, params=task.params, model=task.model, values=None, files=files, versions={}
        )

    def release(self, service: str) -> None:
        """Nothing has to end."""


class Empty(ArtifactStore):
    """A store without content: a folder would take most of the time."""

    def read_key(self, key: str) -> bytes | None:
        """None."""
        return None


def _again(plan: ArtAugPlan, state: State, samples: tuple[Sample, ...]) -> Task:
    regions = (Region("a sky that glows in the evening", (0, 0, 64, 20)), Region("a house with light in its windows", (10, 20, 40, 60)))
    return paint(plan, "regenerate", [(sample.prompt, sample.seed, regions) for sample in samples], "")


def _before(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    return tuple(replace(sample, before=picture) for sample, picture in zip(samples, painted(done), strict=True))


def _after(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Scores of a pair; some pairs improve."""

    def scored(sample: Sample, picture: Painted) -> Sample:
        rise = 1.0 if sample.seed % 50 == 0 else -1.0
        scores = [{"aesthetic": 5.0 + gain, "clip": 25.0, "pickscore": 20.0, "mps": 10.0, "nudenet": 0.0} for gain in (0.0, rise)]
        return replace(sample, after=picture, scores_before=scores[0], scores_after=scores[1], cosine=0.9)

    return tuple(scored(sample, picture) for sample, picture in zip(samples, painted(done), strict=True))


STAGES = (
    PerBatch("generate", "generator", generate, _before),
    PerBatch("regenerate", "generator", _again, _after),
    Barrier("filter", nothing, select),
)


def measure(count: int) -> dict[str, float]:
    """A run of so many samples in this process: peak resident bytes, seconds, pairs kept."""
    files = {"prompts": {"file": "p", "count": count, "seed": 0}, "evaluate": {"file": "h", "count": 1, "seed": 0}}
    spec = ArtAugSpec.model_validate({"name": "memory", "batch": BATCH} | files)
    prompts = held((f"prompt {index}: a small house and a lake under a wide sky at dusk" for index in range(count)), count)
    inputs = {"train": prompts, "tune": (), "heldout": ("x",), "ceiling": ()}
    plan = Plan(spec, inputs, {name: Model(name, "vista") for name in ("generator", "scorers")})
    builder, events = EventBuilder(RECIPE.shown), 0

    def notify(progress: Progress) -> None:
        nonlocal events
        events += len(builder.event(progress).model_dump_json()) > 0

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        state = Engine(plan, BATCH, AtOnce(), Empty(folder), notify).run(STAGES, start(plan))
    assert len(state.samples) == count and events >= 2 * count // BATCH
    kept = sum(sample.verdict == KEPT for sample in state.samples)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"samples": count, "peak_bytes": peak, "seconds": time.monotonic() - began, "kept": kept}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="one million samples as well")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    rows = []
    for size in (*SIZES, FULL) if options.full else SIZES:
        line = [sys.executable, str(Path(__file__)), "--one", str(size)]
        rows.append(json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout))
        rows[-1]["ratio"] = rows[-1]["peak_bytes"] / rows[0]["peak_bytes"]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"{row['samples']:>9} samples: {row['peak_bytes'] / 2**20:7.1f} MiB at most, {row['ratio']:.2f} times the first; "
            f"{row['seconds']:.1f} s, {row['kept']} kept"
        )


if __name__ == "__main__":
    main()
