"""The speed-up of a joint training by more processes, and the cost of bytes that do not depend on their number, as ratios in one run.

Run ``python benchmarks/joint.py [--processes 2]``: the shipped Vista generator, 16 pictures a step in forwards of 4, one thread a
process, gloo between them. The baseline of the second ratio is the usual way, all-reduce of the summed gradient, whose order of
addition is the library's. Medians of ``--steps`` steps after three, the ways taking turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from services.trainer.checkpoint import FitStep
from services.trainer.distributed import Processes
from services.trainer.group import Alone, Group, workers
from services.trainer.objectives import joint
from services.trainer.objectives.joint import JointPicture, JointSettings, JointTraining
from sfumato.diffusion.families import family_of
from sfumato.diffusion.loading import load_pipeline
from sfumato.runtime.processes import free_ports
from sfumato.vista.weights import ROOT, locate

WARM = 3
PROMPTS = ("a full moon over mountains and a lake at night", "a yellow house by day", "two birds over a lake")
TURNS = 4
"""Rounds in which the ways alternate."""


def seconds_a_step(training: JointTraining, group: Group) -> list[float]:
    """Of every step after the first ones."""
    moments = [time.perf_counter()]

    def tell(_: FitStep) -> None:
        moments.append(time.perf_counter())

    training.run(group, on_step=tell)
    return [later - earlier for earlier, later in zip(moments, moments[1:], strict=False)][WARM:]


def reduced(group: Group, part: Callable[[int], Tensor], count: int, nothing: Callable[[], Tensor]) -> Tensor:
    """`services.trainer.group.summed` as it is usually done."""
    share = count // workers(group.size, count)
    own = sum((part(number) for number in range(group.rank * share + 1, (group.rank + 1) * share)), part(group.rank * share))
    dist.all_reduce(own)
    return own


def member(rank: int, size: int, port: int, steps: int, results: Any) -> None:
    """One process; the first one puts the seconds of each way into ``results``."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}  # as torchrun does
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    pipeline = load_pipeline(locate("generator", ROOT), dtype=torch.float32, device="cpu")
    side = family_of(pipeline).limits.default_size
    shape = family_of(pipeline).mask((0, 0, side, side), side, side).shape
    generator = torch.Generator().manual_seed(0)
    pictures = [JointPicture(prompt, torch.randn(*shape, generator=generator)) for prompt in PROMPTS]
    training = JointTraining(pipeline, pictures, JointSettings(steps=WARM + steps), side, side)
    group, ours = Processes() if size > 1 else Alone(), joint.summed
    seconds: dict[str, list[float]] = {"tree": [], "all-reduce": []}
    for _ in range(TURNS if size > 1 else 1):
        seconds["tree"] += seconds_a_step(training, group)
        if size > 1:
            joint.summed = reduced
            seconds["all-reduce"] += seconds_a_step(training, group)
            joint.summed = ours
    if rank == 0:
        results.put({way: statistics.median(each) for way, each in seconds.items() if each})


def measured(size: int, steps: int) -> dict[str, float]:
    """The median seconds of a step by so many processes, by the way they add up."""
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(member, (size, free_ports([0])[0], steps, results), nprocs=size)
    return results.get()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="a power of two up to four")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    alone, together = measured(1, options.steps), measured(options.processes, options.steps)
    figures = {
        "processes": options.processes,
        "speed against one process": round(alone["tree"] / together["tree"], 2),
        "seconds against all-reduce": round(together["tree"] / together["all-reduce"], 3),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
