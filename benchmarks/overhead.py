"""The overhead of the loop: the share of a run's time in which no engine is busy (orchestrator, transport, store, journal).

    python benchmarks/overhead.py [--json]

A small run of two iterations on the built-in world, the VLM inside the worker. Prints the share over the whole run, which includes the
start of the worker processes, the share from the first result on, and the cost of a second run of the same spec, which
finds every task done and so is only overhead. The baseline is the engines' own time in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import sfumato  # noqa: F401 - before diffusers and transformers
from orchestrator.engine.engine import Engine
from orchestrator.runs.submission import submission_of_file
from orchestrator.transports.local import LocalTransport
from sfumato.cli.machine import local_services
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.settings import Settings

CONFIGS = Path(__file__).parents[1] / "configs"
SPEC = f"""
name: overhead
batch: 8
prompts: {{file: {CONFIGS}/prompts/vista.txt, count: 16, seed: 1000}}
ground: {{backend: transformers}}
train: {{pairs: 4, steps_before: 30, steps_after: 30, together: 2}}
fuse: {{alpha: [1.0, 2.0], rank: 16, clip_loss: 100}}
stop: {{max_iterations: 2, min_pairs: 1}}
tune: {{file: {CONFIGS}/prompts/vista-tune.txt, count: 8, seed: 500000}}
evaluate: {{file: {CONFIGS}/prompts/vista-held-out.txt, count: 16, seed: 900000}}
"""


def measure() -> dict[str, float]:
    """Seconds and shares of one run and its repetition."""
    with tempfile.TemporaryDirectory() as scratch:
        spec = Path(scratch) / "spec.yaml"
        spec.write_text(SPEC)
        settings = Settings(runs=Path(scratch) / "runs")
        submitted = submission_of_file(spec, settings)
        record, folder = submitted.record, settings.runs / submitted.id
        folder.mkdir(parents=True)
        recipe, plan = record.recipe, record.plan()
        artifacts = ArtifactStore(settings.artifacts_url)

        def once() -> tuple[LocalTransport, float, float]:
            began = time.monotonic()
            with LocalTransport(local_services(record, folder, settings), settings.artifacts_url) as transport:
                Engine(plan, plan.spec.batch, transport, artifacts, lambda _: None).run(recipe.stages, recipe.start(plan))
                return transport, began, time.monotonic()

        used, began, ended = once()
        _, again, done = once()
    spans = used.spans
    first = spans[0][0]
    return {
        "seconds": ended - began,
        "tasks": used.tasks,
        "outside_engines": 1 - covered(spans, began, ended) / (ended - began),
        "outside_engines_once_started": 1 - covered(spans, first, ended) / (ended - first),
        "repetition_share": (done - again) / (ended - began),
    }


def covered(spans: list[tuple[float, float]], start: float, end: float) -> float:
    """Seconds between ``start`` and ``end`` in which at least one worker was busy."""
    covered, until = 0.0, start
    for began, ended in spans:
        covered += max(0.0, min(ended, end) - max(began, until))
        until = max(until, ended)
    return covered


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    figures = measure()
    if parser.parse_args().json:
        print(json.dumps(figures, indent=1))
    else:
        print("\n".join(f"{name:<32}{value:10.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
