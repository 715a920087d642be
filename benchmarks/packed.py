"""The speed-up of packed training: pairs per hour at K = 1, 4 and 8 against a plain sequential loop with PEFT, as ratios in one run.

Run ``python benchmarks/packed.py [MODEL_FOLDER]`` (the shipped Vista generator without one). Both ways train the same modules at the
same rank, batch and learning rate with AdamW, from cached texts and latents. A pair costs a fixed part (set-up, probes) and its
steps: both are measured from a short and a longer training, interleaved, the median of ``--repeats``, and put together for 120 + 120 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from services.trainer.engine import train_pairs
from services.trainer.pairs import TrainingPair, TrainSettings
from sfumato.diffusion.families import family_of
from sfumato.diffusion.loading import load_pipeline
from sfumato.vista.weights import locate

PACKED = (1, 4, 8)
SHORT, LONG = 2, 8


def pairs(pipeline: Any, count: int) -> list[TrainingPair]:
    """Random latents: their values do not affect the time."""
    family = family_of(pipeline)
    size = family.limits.default_size
    shape = family.mask((0, 0, size, size), size, size).shape
    latents = torch.randn(2 * count, *shape, generator=torch.Generator().manual_seed(0))
    return [
        TrainingPair("a full moon over mountains and a lake at night", latents[2 * k], latents[2 * k + 1], k, size, size)
        for k in range(count)
    ]


def train_with_peft(pipeline: Any, pair: TrainingPair, settings: TrainSettings) -> None:
    """Section 3.3 as one would write it with PEFT: an adapter on X, then another on X' over it."""
    from peft import LoraConfig  # not before sfumato: peft imports transformers

    assert isinstance(settings.rank, int)
    family = family_of(pipeline)
    denoiser, objective, batch = pipeline.transformer, family.parameterization, settings.batch
    texts = {name: text.expand(batch, *text.shape[1:]) for name, text in family.encode([pair.prompt]).items()}
    fits = (("first", pair.before, settings.steps_before), ("second", pair.after, settings.steps_after))
    for number, (name, latents, steps) in enumerate(fits):
        denoiser.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=family.lora_targets), name)
        denoiser.set_adapters([fit[0] for fit in fits[: number + 1]])
        learn = []
        for key, parameter in denoiser.named_parameters():
            parameter.requires_grad_(f".{name}." in key)
            learn += [parameter] if f".{name}." in key else []
        optimizer = torch.optim.AdamW(learn, lr=settings.learning_rate, weight_decay=0.0)
        clean = latents.expand(batch, *latents.shape)
        for _ in range(steps):
            levels, noise = objective.levels(torch.rand(batch)), torch.randn(clean.shape)
            noised = objective.noised(clean, noise, levels)
            answer = family.predict(noised, levels, texts, pair.width, pair.height, settings.guidance)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(answer, objective.target(clean, noise, levels)).backward()
            optimizer.step()
    denoiser.delete_adapters(["first", "second"])
    pipeline.unload_lora_weights()
    denoiser.requires_grad_(False)


def seconds(work: Callable[[], object]) -> float:
    """One call: on one thread in processor seconds, which do not depend on other load, else wall-clock."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def measure(model: Path, repeats: int, threads: int) -> dict[str, object]:
    """Pairs per hour of both ways, and the ratios."""
    torch.set_num_threads(threads)
    pipeline, settings = load_pipeline(model), TrainSettings()
    work = pairs(pipeline, max(PACKED))

    def job(count: int, steps: int) -> Callable[[], object]:
        few = replace(settings, steps_before=steps, steps_after=steps)
        return lambda: train_pairs(pipeline, work[:count], few) if count else train_with_peft(pipeline, work[0], few)

    jobs = {(count, steps): job(count, steps) for count in (0, *PACKED) for steps in (SHORT, LONG)}
    times: dict[tuple[int, int], list[float]] = {key: [] for key in jobs}
    for turn in range(repeats + 1):
        for key, run in jobs.items():
            spent = seconds(run)
            if turn:  # the first turn warms up
                times[key].append(spent)
    hourly = {}
    for count in (0, *PACKED):
        short, long = (statistics.median(times[count, steps]) for steps in (SHORT, LONG))
        step = (long - short) / (LONG - SHORT)  # one of each fit
        hourly[count] = 3600 * max(1, count) / (short + step * (settings.steps_before - SHORT))
    rows = [{"together": k, "pairs_per_hour": round(hourly[k], 1), "to_peft": round(hourly[k] / hourly[0], 2)} for k in PACKED]
    return {"threads": threads, "peft_pairs_per_hour": round(hourly[0], 1), "packed": rows}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(measure(options.model or locate("generator"), options.repeats, options.threads), indent=1))


if __name__ == "__main__":
    main()
