"""Verifies an uploaded adapter before it is stored. Reads headers and numbers with NumPy; PyTorch is not needed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from sfumato.errors import InvalidInput

MAX_BYTES = 8 << 30
MAX_RANK = 1 << 16
KEY = re.compile(r"((?:transformer|unet)\.[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.(lora_A|lora_B)\.weight")
SCALED = "lora_adapter_metadata"  # diffusers' key for a scale that is not in the numbers
CONVERT = "Bring it into the plain layout first: sfumato lora scale FILE --factor 1 -o PLAIN."

# The integer type of each dtype's numbers, and the exponent bits, which are all set in numbers that are not finite.
EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


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
        tensors = deserialize(data)
    except SafetensorError as error:
        raise InvalidInput("adapter", f"is not a safetensors file: {error}.", hint="Fetch it again.") from error
    if SCALED in _free_text(data):
        raise InvalidInput("adapter", f"its scale stands in {SCALED}, not in its numbers.", hint=CONVERT)
    halves: dict[str, dict[str, tuple[int, int]]] = {}
    for key, tensor in tensors:
        match = KEY.fullmatch(key)
        if match is None:
            raise InvalidInput("adapter", f"the key {key[:120]!r} is not of a plain LoRA.", hint=CONVERT)
        shape = tuple(tensor["shape"])
        if len(shape) != 2 or 0 in shape:
            raise InvalidInput("adapter", f"{key} has the shape {shape}, which is no matrix.", hint="Only linear layers are adapted.")
        _check_numbers(key, tensor["dtype"], tensor["data"])
        halves.setdefault(match[1], {})[match[2]] = (shape[0], shape[1])
    modules = {name: _paired(name, found) for name, found in sorted(halves.items())}
    if not modules:
        raise InvalidInput("adapter", "has no modules.", hint="Is it the right file?")
    if len({name.partition(".")[0] for name in modules}) > 1:
        raise InvalidInput("adapter", "holds keys of a transformer and of a unet: it is of no one model.")
    return VerifiedAdapter(digest, len(data), modules, tuple(sorted({tensor["dtype"] for _, tensor in tensors})))


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


def _paired(name: str, halves: Mapping[str, tuple[int, int]]) -> UpdateShape:
    if len(halves) != 2:
        raise InvalidInput("adapter", f"{name} has {next(iter(halves))} only, no pair of lora_A and lora_B.", hint="Was it edited?")
    (rank, inputs), (outputs, other) = halves["lora_A"], halves["lora_B"]
    if rank != other:
        shapes = f"{(rank, inputs)} and {(outputs, other)}"
        raise InvalidInput("adapter", f"{name} has factors {shapes}, which do not multiply.", hint="Was it edited?")
    if rank > MAX_RANK:
        raise InvalidInput("adapter", f"{name} has rank {rank}; the limit is {MAX_RANK}.", hint="Compress it to a lower rank.")
    return UpdateShape(rank, inputs, outputs)


def _check_numbers(key: str, dtype: str, data: bytes | bytearray) -> None:
    """Refuse infinities and NaNs by their exponent bits, which are all set; this works for bfloat16 without another library."""
    if dtype not in EXPONENTS:
        raise InvalidInput("adapter", f"{key} is of {dtype}.", hint=f"Use one of {', '.join(EXPONENTS)}.")
    kind, mask = EXPONENTS[dtype]
    numbers: NDArray[np.unsignedinteger] = np.frombuffer(data, dtype=kind)
    exponent = numbers.dtype.type(mask)
    if ((numbers & exponent) == exponent).any():
        raise InvalidInput("adapter", f"{key} holds numbers that are not finite.", hint="Its training diverged: train it again.")


def _free_text(data: bytes) -> Mapping[str, str]:
    """The metadata of the header; `deserialize` has validated the header before."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__") or {}
