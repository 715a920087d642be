"""The cost of regional generation: against a plain picture, and against the paper's n + 1 sequential forwards.

Run ``python benchmarks/regional.py [MODEL_FOLDER]`` (the shipped Vista generator without one). Pictures are painted in ``--repeats``
rounds, every way once in each; seconds are medians over rounds, ratios are medians of each round's own ratio, so that other load
affects both sides. The sequential way is measured, not computed: the same engine with one row a forward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from services.generator.engine import GeneratorEngine, GeneratorSettings, load_generator
from sfumato.types import Box, GenerateRequest, Region
from sfumato.vista.weights import locate

COUNTS = (1, 2, 4, 8)


def boxes(count: int, size: int) -> list[Box]:
    """``count`` overlapping boxes of half the picture's side, spread over its diagonal."""
    side = size // 2
    return [(offset, offset, offset + side, offset + side) for offset in ((size - side) * k // max(1, count - 1) for k in range(count))]


def request(engine: GeneratorEngine, count: int) -> GenerateRequest:
    """A picture with ``count`` regions, every prompt different, at the model's own defaults."""
    limits = engine.limits
    kinds = ("full moon", "lake", "house", "tree", "boat", "cloud", "flowers", "birds")
    regions = tuple(Region(f"radiant {kind} at night", box) for kind, box in zip(kinds, boxes(count, limits.default_size), strict=False))
    size = limits.default_size
    return GenerateRequest("a moon over a lake at night", 7, size, size, limits.default_steps, limits.default_guidance, regions)


def seconds(engine: GeneratorEngine, wanted: GenerateRequest) -> float:
    """One picture: on one thread of a CPU in processor seconds, which do not depend on other load, else wall-clock."""
    on_cpu = torch.get_num_threads() == 1 and engine.pipeline.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    start = clock()
    engine.generate([wanted])
    return clock() - start


def measure(model: Path, repeats: int, threads: int, device: str) -> dict[str, object]:
    """Seconds of a plain picture, and for every n: batched, sequential, and the ratios."""
    torch.set_num_threads(threads)
    batched = load_generator(model, GeneratorSettings(max_batch=16), device=device)
    sequential = GeneratorEngine(batched.pipeline, GeneratorSettings(max_batch=1))
    jobs = {"plain": (batched, 0)}
    for count in COUNTS:
        jobs[f"batched {count}"] = (batched, count)
        jobs[f"sequential {count}"] = (sequential, count)
    for engine, count in jobs.values():
        seconds(engine, request(engine, count))
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, (engine, count) in jobs.items():
            times[name].append(seconds(engine, request(engine, count)))
    median = {name: statistics.median(values) for name, values in times.items()}

    def ratio(above: str, below: str) -> float:
        return statistics.median(one / other for one, other in zip(times[above], times[below], strict=True))

    rows = [
        {
            "regions": count,
            "seconds": round(median[f"batched {count}"], 3),
            "sequential_seconds": round(median[f"sequential {count}"], 3),
            "to_sequential": round(ratio(f"batched {count}", f"sequential {count}"), 3),
            "to_plain": round(ratio(f"batched {count}", "plain"), 2),
        }
        for count in COUNTS
    ]
    return {"threads": threads, "device": device, "plain_seconds": round(median["plain"], 3), "regional": rows}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=locate("generator"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(json.dumps(measure(options.model, options.repeats, options.threads, options.device), indent=1))


if __name__ == "__main__":
    main()
