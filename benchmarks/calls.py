"""The cost of one gRPC call: seconds added to a picture by calling the generator's service instead of its engine.

    python benchmarks/calls.py [--pairs N] [--json]

The smallest picture Vista's generator paints, one step, its bytes in the answer. The service runs in a process of its own, as in a
system, with the boundary, the engine's queue and the telemetry of a call. Calls over gRPC and calls of an engine here, which encode
the same PNG, alternate, so that other load on the machine affects both; the added time is the median of the pairs' differences. The
baseline is the engine's own time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import sfumato  # noqa: F401 - before diffusers and transformers
from services.generator.engine import load_generator
from sfumato.runtime.client import channel
from sfumato.runtime.images import encode_png
from sfumato.types import GenerateRequest
from sfumato.v1 import generator_pb2, generator_pb2_grpc
from sfumato.vista import weights

ADDRESS = "127.0.0.1:7191"
WARM = 5


def measure(pairs: int) -> dict[str, float]:
    """Milliseconds of both, medians over so many calls."""
    with tempfile.TemporaryDirectory() as scratch:
        more = {"SFUMATO_GRPC_ADDRESS": ADDRESS, "SFUMATO_RUNS": scratch, "SFUMATO_METRICS_ADDRESS": "127.0.0.1:0"}
        line = [sys.executable, "-m", "services.generator.app"]
        process = subprocess.Popen(line, env=os.environ | more, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
        try:
            with channel(ADDRESS) as opened:
                _await_serving(opened, process)
                return _compared(opened, pairs)
        finally:
            process.terminate()
            process.wait()


def _await_serving(opened: grpc.Channel, process: subprocess.Popen[bytes]) -> None:
    health: Any = health_pb2_grpc.HealthStub(opened)  # its types do not know its calls
    while True:
        try:
            if health.Check(health_pb2.HealthCheckRequest()).status == 1:
                return
        except grpc.RpcError:
            if process.poll() is not None:
                raise SystemExit("The generator's service ended; see its log: python -m services.generator.app") from None
        time.sleep(0.1)


def _compared(opened: grpc.Channel, pairs: int) -> dict[str, float]:
    engine, stub = load_generator(weights.locate("generator")), generator_pb2_grpc.GeneratorServiceStub(opened)
    size = engine.limits.min_size
    painting = generator_pb2.Painting(prompt="a red house", seeds=[1], width=size, height=size, steps=1)
    asked, wanted = generator_pb2.GenerateRequest(painting=painting), GenerateRequest("a red house", 1, size, size, 1)

    def served() -> bytes:
        return stub.Generate(asked).pictures[0].image.data

    def direct() -> bytes:
        return encode_png(engine.generate([wanted])[0].image)

    if served() != direct():
        raise SystemExit("The service and the engine painted different pictures.")
    spent: dict[Callable[[], bytes], list[float]] = {served: [], direct: []}
    for index in range(pairs + WARM):
        for call, seconds in spent.items():
            began = time.perf_counter()
            call()
            if index >= WARM:
                seconds.append(time.perf_counter() - began)
    differences = [one - other for one, other in zip(spent[served], spent[direct], strict=True)]
    medians = [1000 * statistics.median(seconds) for seconds in (spent[served], spent[direct], differences)]
    return dict(zip(("grpc_ms", "engine_ms", "added_ms"), medians, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.pairs)
    if options.json:
        print(json.dumps(figures))
    else:
        print("gRPC {grpc_ms:.2f} ms, engine {engine_ms:.2f} ms: {added_ms:+.2f} ms for a call".format(**figures))


if __name__ == "__main__":
    main()
