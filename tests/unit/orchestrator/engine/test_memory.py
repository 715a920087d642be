"""The orchestrator's memory does not grow with the number of samples; the benchmark measures it, here at a small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def _measured(count: int) -> dict[str, float]:
    line = [sys.executable, "benchmarks/memory.py", "--one", str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout)


def test_twenty_times_the_samples_take_no_more_memory() -> None:
    few, many = _measured(2_000), _measured(40_000)
    assert many["kept"] == 20 * few["kept"]
    # All samples as objects would be some 80 MB here.
    assert many["peak_bytes"] - few["peak_bytes"] < 20e6
