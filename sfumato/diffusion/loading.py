"""Loading a pipeline from a local folder, weights as safetensors only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from sfumato.diffusion.families import family_class
from sfumato.diffusion.families.catalog import FAMILIES, supported
from sfumato.errors import BrokenWeights, MissingWeights


def load_pipeline(path: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> DiffusionPipeline:
    """A saved pipeline in ``dtype``, whatever precision its files have, without progress bars and without gradients.

    Raises:
        MissingWeights: there is no saved pipeline in ``path``, or one of its files is absent.
        BrokenWeights: a file cannot be read, or the pipeline is of no supported class.
    """
    index = Path(path) / "model_index.json"
    if not index.is_file():
        raise MissingWeights(f"{path} holds no diffusers pipeline.", hint="Give the folder that contains model_index.json.")
    name, absent = _read_index(index)
    try:
        _check_files(Path(path))
        with _quiet():
            kind = family_class(name).pipeline_type()
            pipeline = kind.from_pretrained(path, dtype=dtype, local_files_only=True, use_safetensors=True, **absent)
    except BrokenWeights:
        raise
    except OSError as error:
        raise MissingWeights(f"{path} is not complete: {error}.", hint="Fetch the model again.") from error
    except Exception as error:  # the libraries raise nearly anything on a damaged file
        raise BrokenWeights(f"{path} cannot be read: {error}.", hint="Fetch the model again.") from error
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipeline.to(device)


def _read_index(index: Path) -> tuple[str, dict[str, None]]:
    """The pipeline's class, one of the catalog's, and the parts it was saved without (SD3's T5), which must be said again."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        name = content["_class_name"]
    except (ValueError, TypeError, LookupError) as error:
        raise BrokenWeights(f"{index} is no index of a diffusers pipeline.", hint="Fetch the model again.") from error
    if not isinstance(name, str) or name not in FAMILIES:
        raise BrokenWeights(f"{index.parent} holds a {name}, which is not supported.", hint=f"Supported: {supported()}.")
    return name, {part: None for part, origin in content.items() if origin == [None, None]}


def _check_files(folder: Path) -> None:
    """Read every configuration and every weight file's header, so that a damaged file is not taken for a missing one."""
    for file in sorted(folder.glob("*/*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BrokenWeights(f"{file} is damaged: {error}.", hint="Fetch the model again.") from error
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise BrokenWeights(f"{file} is damaged: {error}.", hint="Fetch the model again.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the libraries while a pipeline loads; their settings are put back."""
    noisy = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in noisy:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in noisy:
            library.enable_progress_bar()
