"""The overhead of the system: the share of a run's time in which no engine of any service is busy.

    python benchmarks/system.py [--json]

Starts every service as a process of its own with nats-server between them, submits a small ArtAug run on the built-in world (the VLM
inside the grounding service), and reads the intervals of all tasks from the bus. The baseline is the engines' own time in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nats.errors import TimeoutError as NothingMore

from sfumato.runtime.bus import EVENTS, Bus, Result, result_subject
from sfumato.runtime.settings import BusSettings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.overhead import SPEC, covered  # noqa: E402 - found beside this file, wherever it is started from
from tests.chaos.whole import Whole  # noqa: E402


def measure() -> dict[str, float]:
    """Seconds, tasks and shares of one run."""
    with tempfile.TemporaryDirectory() as scratch, Whole(Path(scratch) / "system") as system:
        spec = Path(scratch) / "spec.yaml"
        spec.write_text(SPEC)
        server = ("--server", system.parts["orchestrator-1"].address, "--runs", str(Path(scratch) / "runs"))
        began = time.time()
        subprocess.run([sys.executable, "-m", "sfumato.cli.main", "run", str(spec), *server], check=True, cwd=ROOT, stdout=sys.stderr)
        ended = time.time()
        spans = sorted(asyncio.run(_worked(BusSettings(url=system.server.url))))
    first, last = spans[0][0], max(end for _, end in spans)
    return {
        "seconds": ended - began,
        "tasks": len(spans),
        "outside_engines": 1 - covered(spans, first, last) / (last - first),
        "outside_engines_from_submit_to_files": 1 - covered(spans, began, ended) / (ended - began),
    }


async def _worked(settings: BusSettings) -> list[tuple[float, float]]:
    """The start and the end of each task, in seconds since 1970."""
    spans = []
    async with Bus(settings, "benchmark") as bus:
        results = await bus.js.subscribe(result_subject("*"), stream=EVENTS, ordered_consumer=True)
        while True:
            try:
                message = await results.next_msg(timeout=2)
            except NothingMore:
                return spans
            result = Result.model_validate_json(message.data)
            end = message.metadata.timestamp.timestamp()
            if result.seconds:
                spans.append((end - result.seconds, end))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    figures = {name: round(value, 4) for name, value in measure().items()}
    if as_json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{name:>38}  {value:g}")


if __name__ == "__main__":
    main()
