"""The factors and scale of every module after a library has loaded an adapter file by its own means.

Nothing is loaded onto a user's model, and no weights are needed: a denoiser's empty copy has every module at its true shape, all
its parameters one zero seen many times. FLUX.1's takes a few megabytes.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from peft import PeftModel
from torch import Tensor, nn

from sfumato.diffusion.families import family_class
from sfumato.diffusion.families.catalog import DENOISERS, FAMILIES, supported
from sfumato.errors import BrokenWeights, MissingWeights
from sfumato.lora.adapter import Adapter

NAME = "sfumato_verify"


class Loader(StrEnum):
    """The library that reads a file back."""

    DIFFUSERS = "diffusers"
    BARE = "diffusers' load_lora_adapter"
    PEFT = "PEFT"
    CONVERTED = "diffusers, after conversion"


def denoiser_of(pipeline: DiffusionPipeline) -> nn.Module:
    """The pipeline's transformer or U-Net."""
    return next(getattr(pipeline, name) for name in DENOISERS if isinstance(getattr(pipeline, name, None), nn.Module))


def denoiser_config(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The configuration of the pipeline's denoiser."""
    return dict(cast(Any, denoiser_of(pipeline)).config)


def skeleton(folder: Path) -> DiffusionPipeline:
    """A saved pipeline's denoiser without weights, in a pipeline of its class and nothing else: enough to bind adapters to.

    Raises:
        MissingWeights: there is no saved pipeline in ``folder``.
        BrokenWeights: it is of no supported class, or its configuration cannot be read.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise MissingWeights(f"{folder} holds no diffusers pipeline.", hint="Give the folder that contains model_index.json.")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        if entries["_class_name"] not in FAMILIES:
            hint = f"Supported: {supported()}."
            raise BrokenWeights(f"{folder} holds a {entries['_class_name']}, which is not supported.", hint=hint)
        kind = family_class(entries["_class_name"]).pipeline_type()
        part = next(name for name in DENOISERS if name in entries)
        config = json.loads((Path(folder) / part / "config.json").read_text(encoding="utf-8"))
        return _empty(kind, getattr(diffusers, entries[part][1]), config)
    except (OSError, json.JSONDecodeError, KeyError, StopIteration, AttributeError, TypeError) as error:
        raise BrokenWeights(f"{folder} is no readable pipeline: {error!r}.", hint="Fetch the model again.") from error


def bound(source: Path | Mapping[str, Tensor], pipeline: DiffusionPipeline, loader: Loader) -> Adapter | None:
    """The update as the library has it after loading ``source`` onto an empty copy; ``None`` if no module has any.

    Raises:
        BrokenWeights: the library refuses it, in its words.
    """
    model = denoiser_of(pipeline)
    copy = _empty(type(pipeline), type(model), denoiser_config(pipeline))
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):  # factors are drawn at random before they are loaded
            if loader is Loader.PEFT:
                PeftModel.from_pretrained(denoiser_of(copy), str(source), adapter_name=NAME)
            elif isinstance(source, Path):
                target: Any = denoiser_of(copy) if loader is Loader.BARE else copy
                load = partial(target.load_lora_adapter, prefix=None) if loader is Loader.BARE else target.load_lora_weights
                load(str(source.parent), weight_name=source.name, adapter_name=NAME, local_files_only=True)
            else:
                copy.load_lora_weights(dict(source), adapter_name=NAME)
    except Exception as error:  # a library refuses a file with any error at all, some of them without words
        named = source if isinstance(source, Path) else "the adapter"
        words = " ".join(str(error).split()) or type(error).__name__
        raise BrokenWeights(f"{loader} does not load {named}: {words[:400]}", hint="Is it of this model?") from error
    factors = {}
    for name, module in denoiser_of(copy).named_modules():
        if NAME in getattr(module, "lora_A", {}):
            layer = cast(Any, module)
            a, b = layer.lora_A[NAME].weight.detach().flatten(1), layer.lora_B[NAME].weight.detach().flatten(1)
            factors[name] = (a, b.float() * layer.scaling[NAME])
    return Adapter(factors) if factors else None


def _empty(kind: type[DiffusionPipeline], denoiser: Any, config: dict[str, Any]) -> DiffusionPipeline:
    with torch.device("meta"):
        model = denoiser.from_config(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
    part = "unet" if "unet" in inspect.signature(kind.__init__).parameters else "transformer"
    with _quiet():
        return kind(**{name: None for name in _required(kind)} | {part: model})


def _required(kind: type[DiffusionPipeline]) -> list[str]:
    """Components a pipeline's constructor asks for."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return [p.name for p in parameters if p.default is inspect.Parameter.empty]


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of the libraries (that there is no text encoder, that keys did not bind): `verify` raises what matters."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(level)
