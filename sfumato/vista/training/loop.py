"""One training loop for every Vista model: budget, progress, checkpoints, exact resume, averaged weights.

Randomness is a function of the step alone (``Step.torch`` and ``Step.python`` are seeded from the task's seed and the
step number), so a resumed training needs no random state and ends in the same bytes as an undisturbed one.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.errors import Diverged, InvalidInput
from sfumato.runtime.files import replacing


@dataclass(frozen=True, slots=True)
class Step:
    """Where a training stands: the step's number, the share of all steps done (0 to 1), its sources of randomness."""

    number: int
    share: float
    torch: torch.Generator
    python: random.Random


class TrainingTask(Protocol):
    """One model to train. ``model`` holds everything that learns; its average over the steps is what is exported."""

    name: str
    seed: int
    average: float

    @property
    def model(self) -> nn.Module:
        """What learns."""
        ...

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers, with the peak learning rate of each group in ``lr``."""
        ...

    def backward(self, step: Step) -> float:
        """Accumulate the gradients of one optimizer step (in as many micro-batches as wanted); the loss."""
        ...

    def validate(self, average: nn.Module) -> Mapping[str, float]:
        """Figures of the averaged weights on held-out data; cheap, called a few times an hour."""
        ...

    def export(self, average: nn.Module, folder: Path) -> None:
        """Save the averaged weights in their library's own format."""
        ...


def rate(share: float, warm: float = 0.01, steady: float = 0.5, floor: float = 0.02) -> float:
    """Share of the peak learning rate: a short rise, a plateau, a straight descent to ``floor``."""
    if share < warm:
        return max(floor, share / warm)
    return 1.0 if share < steady else 1.0 + (floor - 1.0) * (share - steady) / (1.0 - steady)


def parse_budget(text: str) -> float:
    """Seconds of ``"3h"``, ``"20m"`` or ``"45s"``.

    Raises:
        InvalidInput: the text is none of these.
    """
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise InvalidInput("budget", f"{text!r} is not a duration.", hint="Write 3h, 20m or 45s.") from None
    if not 0 < seconds < 1e6:
        raise InvalidInput("budget", f"{text!r} is out of range.", hint="Write 3h, 20m or 45s.")
    return seconds


def fit(
    task: TrainingTask,
    folder: Path,
    *,
    steps: int | None = None,
    budget: float | None = None,
    resume: bool = False,
    checkpoint_every: float = 120.0,
    validate_every: float = 600.0,
    clip: float = 1.0,
) -> Mapping[str, float]:
    """Train ``task`` for ``steps`` optimizer steps, or for as many as fit into ``budget`` seconds; its last figures.

    A budget is turned into a number of steps by timing the first ones, and that number is kept in the checkpoint, so
    that the schedule, and a resumed training, do not depend on the clock. Ctrl-C saves a checkpoint and stops.

    Raises:
        Diverged: the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task.name}.checkpoint.safetensors"
    average = copy.deepcopy(task.model).eval().requires_grad_(False)
    optimizers = task.optimizers()
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    done, total = 0, steps
    if resume and path.is_file():
        done, total = _restore(path, task.model, average, optimizers)
        total = steps or total
    learned = [p for group in (g for o in optimizers for g in o.param_groups) for p in group["params"]]
    figures: Mapping[str, float] = {}
    loss_average: float | None = None
    started = saved = validated = time.monotonic()
    first = done
    log = (folder / f"{task.name}.log.jsonl").open("a")
    with log, _progress() as bar:
        line = bar.add_task(task.name, total=total, loss="")
        try:
            while total is None or done < total:
                now = time.monotonic()
                if total is None and budget is not None and done - first >= 12 and now - started > min(20.0, budget / 10):
                    total = done + max(1, int((budget - (now - started)) * (done - first) / (now - started)))
                    bar.update(line, total=total)
                share = done / total if total else min(0.004, done * 1e-4)
                step = Step(done, share, torch.Generator().manual_seed(task.seed * 1_000_003 + done), random.Random(f"{task.seed}:{done}"))
                for optimizer, lrs in zip(optimizers, peaks, strict=True):
                    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                        group["lr"] = lr * rate(share)
                    optimizer.zero_grad(set_to_none=True)
                loss = task.backward(step)
                if not loss == loss or loss in (float("inf"), float("-inf")):
                    raise Diverged(f"{task.name}: the loss is {loss} at step {done}.", hint="Lower the learning rate.")
                nn.utils.clip_grad_norm_(learned, clip)
                for optimizer in optimizers:
                    optimizer.step()
                done += 1
                _average(average, task.model, min(task.average, (done + 1) / (done + 10)))
                loss_average = loss if loss_average is None else 0.98 * loss_average + 0.02 * loss
                bar.update(line, completed=done, loss=f"loss {loss_average:.4f}")
                now = time.monotonic()
                if now - validated > validate_every:
                    figures, validated = task.validate(average), now
                    bar.console.print(f"{task.name} step {done}: " + _text(figures))
                if now - saved > checkpoint_every:
                    saved = now
                    _save(path, task.model, average, optimizers, done, total)
                    log.write(_entry(done, total, now - started, loss_average, figures))
                    log.flush()
        finally:
            _save(path, task.model, average, optimizers, done, total)
        figures = task.validate(average)
        log.write(_entry(done, total, time.monotonic() - started, loss_average, figures))
        bar.console.print(f"{task.name} done after {done} steps: " + _text(figures))
    task.export(average, folder / task.name)
    return figures


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _entry(done: int, total: int | None, seconds: float, loss: float | None, figures: Mapping[str, float]) -> str:
    return json.dumps({"step": done, "of": total, "seconds": round(seconds, 1), "loss": loss, **figures}) + "\n"


def _text(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items())


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, keep: float) -> None:
    pairs = list(zip(average.parameters(), model.parameters(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [m for _, m in pairs], 1 - keep)
    for a, m in zip(average.buffers(), model.buffers(), strict=True):
        a.copy_(m)


def _save(path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer], done: int, total: int | None) -> None:
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in _unique(model).items()}
    tensors |= {f"average.{k}": v for k, v in _unique(average).items()}
    for i, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    with replacing(path) as part:
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata={"done": str(done), "total": str(total or 0)})


def _restore(path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> tuple[int, int | None]:
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for prefix, module in (("model.", model), ("average.", average)):
        module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}, strict=False)
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                index, name = key.split(".", 2)[2].split(".", 1)
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["done"]), int(metadata["total"]) or None


def _unique(module: nn.Module) -> dict[str, Tensor]:
    """The state without the second name of tied tensors."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        if value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            unique[key] = value
    return unique
