"""Throughput and added latency of the inference service, and the cost of a fused model and of a swap.

    python benchmarks/inference.py [--rounds N] [--threads N] [--engine-only]

On the shipped model at its own steps, everything in one run, every way once in each round and in turn; ratios are medians of each
round's (each picture's) own ratio, so that other load affects both sides; differences are those of medians. Baselines:
the bare diffusers pipeline in a loop, and a Bento service as in BentoML's own diffusion example (`benchmarks/naive_diffusion.py`: one
request, one pipeline call). Over HTTP both services run as processes of their own, and are idle while the other one is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from services.inference.painting.engine import InferenceEngine, PaintRequest  # noqa: E402 - found beside this file, wherever it is started from
from services.inference.painting.weights import AdapterMix  # noqa: E402
from sfumato.diffusion.families.flux import FluxFamily  # noqa: E402
from sfumato.diffusion.loading import load_pipeline  # noqa: E402
from sfumato.lora.adapter import Adapter  # noqa: E402
from sfumato.runtime.device import pick_device  # noqa: E402
from sfumato.types import GenerateRequest  # noqa: E402
from sfumato.vista.weights import locate  # noqa: E402
from tests.integration.inference.serving import registry_with_a_version, serving  # noqa: E402
from tests.integration.programs import SECONDS  # noqa: E402

CONCURRENT = (1, 4, 16)
PICTURES = 16
PROMPT = "a full moon over mountains and a lake at night"


def adapter(network: torch.nn.Module, rank: int, seed: int) -> Adapter:
    """Random factors on all linears that a LoRA of this family sits on."""
    generator, factors = torch.Generator().manual_seed(seed), {}
    for name, part in network.named_modules():
        if isinstance(part, torch.nn.Linear) and re.fullmatch(FluxFamily.lora_targets, name):
            a = torch.randn(rank, part.in_features, generator=generator)
            factors[name] = (a, 0.005 * torch.randn(part.out_features, rank, generator=generator))
    return Adapter(factors)


class Ways:
    """Seconds of the same work done in several ways, each once in every round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[[], Any]) -> None:
        """Once more."""
        start = time.perf_counter()
        work()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)

    def ratio(self, above: str, below: str) -> float:
        """The median of the rounds' own ratios."""
        return statistics.median(one / other for one, other in zip(self.seconds[above], self.seconds[below], strict=True))

    def more(self, above: str, below: str) -> float:
        """The difference of the medians, in seconds."""
        return self.median(above) - self.median(below)

    def quickest_more(self, above: str, below: str) -> float:
        """The difference of the quickest rounds, in seconds: those that a busy machine disturbed least."""
        return min(self.seconds[above]) - min(self.seconds[below])

    def median(self, name: str) -> float:
        """Of the rounds, in seconds."""
        return statistics.median(self.seconds[name])


class Engine:
    """The engine on an event loop of its own, asked from outside; beside it the bare pipeline, with weights of its own."""

    def __init__(self, model: Path, rank: int) -> None:
        device = pick_device()
        self.bare: Any = load_pipeline(model, device=device)
        self.engine = InferenceEngine(load_pipeline(model, device=device))
        self.network = self.engine.pipeline.transformer  # pyright: ignore[reportAttributeAccessIssue]
        self.rank = rank
        self.engine.prepare("fused", adapter(self.network, rank, 0))
        self.loop = asyncio.new_event_loop()

    def asked(self, seed: int, scale: float) -> PaintRequest:
        """A picture at the model's own size and steps."""
        limits = self.engine.limits
        size = limits.default_size
        return PaintRequest(GenerateRequest(PROMPT, seed, size, size, limits.default_steps, limits.default_guidance), scale)

    def paint_bare(self, seed: int) -> None:
        """By the pipeline itself, for as many tokens as the model reads: its default of 512 would be most of the work."""
        wanted = self.asked(seed, 0).request
        self.bare(
            wanted.prompt, width=wanted.width, height=wanted.height, num_inference_steps=wanted.steps, guidance_scale=wanted.guidance_scale,
            generator=torch.Generator().manual_seed(seed), max_sequence_length=self.engine.limits.prompt_tokens,
        )  # fmt: skip

    def paint(self, seeds: range, concurrent: int, scale: float = 1.0) -> list[float]:
        """By the engine, so many at a time; seconds of each."""

        async def all_of() -> list[float]:
            places = asyncio.Semaphore(concurrent)

            async def one(seed: int) -> float:
                async with places:
                    start = time.perf_counter()
                    await self.engine.paint(self.asked(seed, scale), "fused")
                    return time.perf_counter() - start

            return list(await asyncio.gather(*[one(seed) for seed in seeds]))

        return self.loop.run_until_complete(all_of())

    def swap(self, concurrent: int, swaps: int) -> dict[str, float]:
        """Versions prepared beside steady painting, each put in the place of the one before; the slowest picture meanwhile."""
        engine, current = self.engine, ["fused"]
        calm: list[float] = []
        busy: list[float] = []
        preparing: list[float] = []

        async def steady(into: list[float], ending: asyncio.Event) -> None:
            seed = 0
            while not ending.is_set():
                seed, start = seed + 1, time.perf_counter()
                await engine.paint(self.asked(seed, 1.0), current[0])
                into.append(time.perf_counter() - start)

        async def work() -> None:
            for into, moves in ((calm, 0), (busy, swaps)):
                ending = asyncio.Event()
                tasks = [asyncio.create_task(steady(into, ending)) for _ in range(concurrent)]
                for number in range(moves):
                    update = adapter(self.network, self.rank, number + 1)
                    start, before = time.perf_counter(), current[0]
                    await asyncio.to_thread(engine.prepare, f"swap {number}", update)
                    preparing.append(time.perf_counter() - start)
                    current[0] = f"swap {number}"
                    while len(into) < (number + 1) * 2 * concurrent:
                        await asyncio.sleep(0.01)
                    await asyncio.to_thread(engine.drop, before)
                while len(into) < max(1, moves) * 2 * concurrent:
                    await asyncio.sleep(0.01)
                ending.set()
                await asyncio.gather(*tasks)
            engine.prepare("fused", adapter(self.network, self.rank, 0))

        self.loop.run_until_complete(work())
        return {
            "swaps": swaps,
            "pictures": len(busy),
            "prepare_seconds": round(statistics.median(preparing), 3),
            "slowest_to_median_while_calm": round(max(calm) / statistics.median(calm), 2),
            "slowest_while_swapping_to_median_while_calm": round(max(busy) / statistics.median(calm), 2),
        }

    @torch.no_grad()
    def step_microseconds(self, times: int = 500) -> float:
        """What a step costs beside the network's forward, when one picture is painted alone; the median, the network answering at once."""
        network, family, limits = self.network, FluxFamily(self.engine.pipeline), self.engine.limits  # pyright: ignore[reportArgumentType]
        text = family.encode([PROMPT])
        latents = family.mask((0, 0, limits.default_size, limits.default_size), limits.default_size, limits.default_size)[None]
        ids = torch.zeros(latents.shape[1], 3)
        arguments = {"hidden_states": latents, "timestep": torch.ones(1), "img_ids": ids, "txt_ids": ids[:1], "return_dict": False, **text}
        alone: list[float] = []
        bare: list[float] = []
        slot, version = self.engine._batcher.slot(), self.engine._versions["fused"]
        network.forward = lambda **_: (latents,)
        try:
            with slot.taken(AdapterMix(version), 16, threading.Event()):
                for asked, into in [(slot.module, alone), (network, bare)] * times:
                    start = time.perf_counter()
                    asked(**arguments)
                    into.append(time.perf_counter() - start)
        finally:
            del network.forward
        return 1e6 * (statistics.median(alone) - statistics.median(bare))

    def close(self) -> None:
        """Stop its threads."""
        self.loop.run_until_complete(self.engine.close())
        self.loop.close()


def in_process(rounds: int, rank: int) -> dict[str, Any]:
    """The engine against the bare pipeline in the same process."""
    engine = Engine(Path(locate("generator")), rank)
    engine.paint_bare(0)
    for scale in (0.0, 0.5, 1.0):
        engine.paint(range(CONCURRENT[-1]), CONCURRENT[-1], scale)
    single, many = Ways(), Ways()
    for seed in range(rounds * PICTURES):
        ways: list[tuple[str, Callable[[], Any]]] = [("bare", lambda seed=seed: engine.paint_bare(seed))]
        for name, scale in (("base", 0.0), ("fused", 1.0), ("half", 0.5)):
            ways.append((name, lambda seed=seed, scale=scale: engine.paint(range(seed, seed + 1), 1, scale)))
        for name, work in ways[seed % 4 :] + ways[: seed % 4]:  # the order rotates
            single.time(name, work)
    for _ in range(rounds):
        many.time("bare", lambda: [engine.paint_bare(seed) for seed in range(PICTURES)])
        for concurrent in CONCURRENT:
            many.time(f"engine {concurrent}", lambda concurrent=concurrent: engine.paint(range(PICTURES), concurrent))
    swapping = engine.swap(4, 5)
    step = engine.step_microseconds()
    engine.close()
    return {
        "bare_milliseconds_a_picture": round(1000 * single.median("bare"), 1),
        "added_milliseconds_at_concurrency_1": round(1000 * single.more("base", "bare"), 2),
        "added_microseconds_a_step": round(step, 1),
        "added_milliseconds_of_the_quickest": round(1000 * single.quickest_more("base", "bare"), 2),
        "fused_to_base": round(single.ratio("fused", "base"), 3),
        "half_scale_to_base": round(single.ratio("half", "base"), 3),
        "throughput_to_bare_loop": {str(c): round(many.ratio("bare", f"engine {c}"), 2) for c in CONCURRENT},
        "swap": swapping,
    }


@contextmanager
def naive_service(environment: dict[str, str]) -> Iterator[str]:
    """The address of BentoML's example as a process."""
    where = ("--host", "127.0.0.1", "--port", str(_free_port()))
    line = (sys.executable, "-m", "bentoml", "serve", "benchmarks.naive_diffusion:Naive", *where)
    with serving("", "", command=line, **environment) as served:
        yield served.url
        served.end()  # in good order: its worker would outlive it


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def over_http(rounds: int, threads: int) -> dict[str, Any]:
    """Both services, each asked as its clients do."""
    environment = {"OMP_NUM_THREADS": str(threads), "BENTOML_DO_NOT_TRACK": "true", "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryDirectory() as folder,
        registry_with_a_version(Path(folder)) as (registry, version),
        serving(registry, version, **environment) as ours,
        naive_service(environment) as naive,
        httpx.Client(timeout=SECONDS, limits=httpx.Limits(max_connections=64)) as client,
    ):

        def ask(url: str, body: dict[str, Any]) -> None:
            client.post(url, json=body).raise_for_status()

        def ask_ours(seed: int) -> None:
            ask(f"{ours.url}/v1/images/generations", {"prompt": PROMPT, "seed": seed})

        def ask_naive(seed: int) -> None:
            ask(f"{naive}/txt2img", {"prompt": PROMPT})

        def together(one: Callable[[int], None], concurrent: int) -> None:
            with ThreadPoolExecutor(concurrent) as pool:
                list(pool.map(one, range(PICTURES)))

        together(ask_ours, CONCURRENT[-1])
        together(ask_naive, CONCURRENT[-1])
        many, single = Ways(), Ways()
        for seed in range(rounds * PICTURES):
            for name, one in (("ours", ask_ours), ("naive", ask_naive))[:: 1 if seed % 2 else -1]:
                single.time(name, lambda one=one, seed=seed: one(seed))
        for _ in range(rounds):
            for concurrent in CONCURRENT:
                many.time(f"ours {concurrent}", lambda concurrent=concurrent: together(ask_ours, concurrent))
                many.time(f"naive {concurrent}", lambda concurrent=concurrent: together(ask_naive, concurrent))
    return {
        "naive_milliseconds_a_request": round(1000 * single.median("naive"), 1),
        "more_milliseconds_than_naive_at_concurrency_1": round(1000 * single.more("ours", "naive"), 2),
        "more_milliseconds_of_the_quickest": round(1000 * single.quickest_more("ours", "naive"), 2),
        "throughput_to_naive_bento": {str(c): round(many.ratio(f"naive {c}", f"ours {c}"), 2) for c in CONCURRENT},
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter that is fused and bypassed")
    parser.add_argument("--engine-only", action="store_true", help="without the two services")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {"threads": options.threads, "device": pick_device(), "rank": options.rank}
    figures |= in_process(options.rounds, options.rank)
    if not options.engine_only:
        figures |= over_http(options.rounds, options.threads)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
