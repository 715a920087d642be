"""Every Vista model by name: how its training is set up, its share of a budget, and where its weights go."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.errors import InvalidInput, MissingWeights
from sfumato.vista import weights
from sfumato.vista.training.loop import TrainingTask, fit

SHARES = {
    "vae": 0.06,
    "transformer": 0.38,
    "guided": 0.04,
    "detector": 0.04,
    "judge": 0.03,
    "clip": 0.08,
    "aesthetic": 0.01,
    "pickscore": 0.03,
    "mps": 0.03,
    "understanding": 0.30,
}
"""Each part's share of the whole budget, in the order of training (the later ones need the earlier)."""

FOLDERS = {"guided": "generator"}
"""Where a part's export lies in the package, when not under its own name; ``vae`` and ``transformer`` end in the pipeline."""


def train(
    parts: Sequence[str], folder: Path, *, device: str, budget: float, steps: int | None, resume: bool
) -> dict[str, Mapping[str, float]]:
    """Train these parts one after the other; their last figures.

    Args:
        parts: names in ``SHARES``.
        folder: holds checkpoints, cached data and exports.
        device: ``"cpu"`` or ``"cuda"``.
        budget: seconds for all of them together.
        steps: optimizer steps for each, instead of a budget.
        resume: go on from the checkpoints in ``folder``.

    Raises:
        InvalidInput: an unknown part.
        MissingWeights: a part needs another that was not trained.
    """
    unknown = sorted(set(parts) - set(SHARES))
    if unknown:
        raise InvalidInput("part", f"{', '.join(unknown)} is not a part of Vista.", hint=f"The parts are {', '.join(SHARES)}.")
    whole = sum(SHARES[part] for part in parts)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {}
    for part in (name for name in SHARES if name in parts):
        task = build(part, folder, device)
        limit = None if steps else budget * SHARES[part] / whole
        figures[part] = fit(task, folder, steps=steps, budget=limit, resume=resume)
    return figures


def build(part: str, folder: Path, device: str) -> TrainingTask:
    """The task of one part."""
    if part == "vae":
        from sfumato.vista.training.autoencoder import AutoencoderTask

        return AutoencoderTask(device)
    if part == "transformer":
        from sfumato.vista.training.generator import TransformerTask

        return TransformerTask(_vae(folder, device), folder, device)
    if part == "guided":
        from sfumato.vista.training.generator import GuidanceTask

        return GuidanceTask(_vae(folder, device), folder, _trained(folder), device=device)
    if part in ("detector", "judge"):
        from sfumato.vista.training import judge

        return judge.DetectorTask(cache=folder) if part == "detector" else judge.JudgeTask(cache=folder)
    if part == "understanding":
        from sfumato.vista.training import understanding

        return understanding.build(folder, device)
    from sfumato.vista.training import scorers

    return scorers.build(part, folder, device)


def install(folder: Path, parts: Sequence[str], root: Path = weights.ROOT) -> None:
    """Copy trained exports into the package, floating point tensors as fp16, and record their checksums."""
    for part in parts:
        if part in ("vae", "transformer"):
            continue
        source, target = folder / part, root / FOLDERS.get(part, part)
        if not source.is_dir():
            raise MissingWeights(f"{source} does not exist.", hint=f"Train it first: sfumato vista train --part {part}")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        for path in target.rglob("*.safetensors"):
            halve(path)
        weights.seal(target)


def halve(path: Path) -> None:
    """Rewrite a weight file with its floating point tensors in fp16. The config still says float32, so that is what is loaded."""
    save_file({name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()}, path, metadata={"format": "pt"})


def _vae(folder: Path, device: str) -> AutoencoderKL:
    if not (folder / "vae" / "config.json").is_file():
        raise MissingWeights("the autoencoder is not trained yet.", hint="sfumato vista train --part vae")
    return AutoencoderKL.from_pretrained(folder / "vae").eval().requires_grad_(False).to(device)  # pyright: ignore


def _trained(folder: Path) -> nn.ModuleDict:
    from diffusers import FluxPipeline

    if not (folder / "transformer" / "model_index.json").is_file():
        raise MissingWeights("the transformer is not trained yet.", hint="sfumato vista train --part transformer")
    pipeline = FluxPipeline.from_pretrained(folder / "transformer")
    return nn.ModuleDict({"transformer": pipeline.transformer, "clip": pipeline.text_encoder, "t5": pipeline.text_encoder_2})
