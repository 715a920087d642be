"""Verifies an uploaded adapter before it is stored, by the checks that every reader of adapters has; PyTorch is not needed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.lora.contents import MAX_BYTES, parse_contents, shown
from sfumato.lora.keys import CONVERT, parse_keys

KEY = re.compile(r"(transformer|unet)\.[A-Za-z0-9_.]+\.lora_[AB]\.weight")
SCALED = "lora_adapter_metadata"  # diffusers' key for a scale that is not in the numbers


@dataclass(frozen=True, slots=True)
class UpdateShape:
    """One module's update: ``A [rank, inputs]`` and ``B [outputs, rank]``."""

    rank: int
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class VerifiedAdapter:
    """A verified adapter. ``modules`` by ``<denoiser>.<module>``; ``sha256`` of the whole file, ``size`` in bytes."""

    sha256: str
    size: int
    modules: Mapping[str, UpdateShape]
    dtypes: tuple[str, ...]

    @property
    def ranks(self) -> tuple[int, int]:
        """The smallest and the largest rank."""
        ranks = [module.rank for module in self.modules.values()]
        return min(ranks), max(ranks)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(module.rank * (module.inputs + module.outputs) for module in self.modules.values())


def verified(data: bytes, sha256: str = "") -> VerifiedAdapter:
    """Check every key, shape and number of an adapter in the plain layout (`sfumato.lora.files`): safetensors, scale baked in.

    Args:
        data: the file.
        sha256: the digest that the sender claims; empty: none.

    Raises:
        InvalidInput: it is too large, has another digest, is not a safetensors file or not a plain LoRA, or has numbers that are not
            finite; the message names the key.
    """
    if len(data) > MAX_BYTES:
        raise InvalidInput("adapter", f"{len(data):,} bytes are more than the limit of {MAX_BYTES:,}.", hint="Compress it to a lower rank.")
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise InvalidInput("sha256", f"the file's is {digest}, not {sha256}.", hint="It was damaged on its way: send it again.")
    try:
        contents = parse_contents(data, "the file")
        parsed = parse_keys(contents, "the file")
    except BrokenWeights as error:
        raise InvalidInput("adapter", error.message, hint=error.hint) from error
    for key in contents.entries:
        if KEY.fullmatch(key) is None:
            raise InvalidInput("adapter", f"the key {shown(key)} is not of the plain layout.", hint=CONVERT)
    if SCALED in contents.header:
        raise InvalidInput("adapter", f"its scale stands in {SCALED}, not in its numbers.", hint=CONVERT)
    modules = {f"{parsed.prefix}{pair.name}": UpdateShape(pair.rank, pair.inputs, pair.outputs) for pair in parsed.pairs}
    dtypes = tuple(sorted({entry.dtype for entry in contents.entries.values()}))
    return VerifiedAdapter(digest, len(data), modules, dtypes)


def check_base(adapter: VerifiedAdapter, base: Mapping[str, list[int]]) -> None:
    """Check that every module of the adapter is a module of the base model with the same shape.

    Args:
        adapter: the verified adapter.
        base: ``[out, in]`` by ``<denoiser>.<module>``.

    Raises:
        InvalidInput: names the module that the base does not have, or has in another shape.
    """
    for name, factors in adapter.modules.items():
        shape = base.get(name)
        if shape is None:
            raise InvalidInput("adapter", f"the base model has no linear {name}.", hint="It is an adapter of another model.")
        if list(shape) != [factors.outputs, factors.inputs]:
            shapes = f"the update is {factors.outputs}x{factors.inputs}, the weight {shape[0]}x{shape[1]}"
            raise InvalidInput("adapter", f"{name}: {shapes}.", hint="It is an adapter of another model.")
