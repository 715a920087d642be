"""Tensors of adapter files: from the entries that were checked, and written so that the same content is always the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from sfumato.errors import BrokenWeights, InvalidInput
from sfumato.lora.adapter import Adapter, single
from sfumato.lora.contents import METADATA, Entry
from sfumato.lora.keys import Pair
from sfumato.runtime.files import write_whole

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors by name, and ``metadata`` as one JSON object under one key; the file appears whole or not at all.

    Raises:
        InvalidInput: the path is a folder, or cannot be written.
    """
    data = to_bytes(tensors, metadata)
    if path.is_dir():
        raise InvalidInput("output", f"{path} is a folder.", hint="Give the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise InvalidInput("output", f"{path} cannot be written: {error.strerror}.", hint="Is there room, and leave to write?") from error


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of such a file."""
    free = {METADATA: json.dumps(dict(metadata), sort_keys=True, ensure_ascii=True)} if metadata else None
    return save({name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}, metadata=free)


def shaped(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors as files have them: those of a 1x1 convolution with two more dimensions of 1."""
    deep = {name: (a[..., None, None], b[..., None, None]) for name, (a, b) in adapter.factors.items() if name in adapter.pointwise}
    return {**adapter.factors, **deep}


def factors_of(pair: Pair, scale: float, where: str) -> tuple[Tensor, Tensor]:
    """``A [rank, in]`` and ``B [out, rank]`` of a pair of entries, with ``scale`` multiplied into B.

    float8 becomes bfloat16, which holds all its numbers; nothing multiplies float8.

    Raises:
        BrokenWeights: the scaled numbers are not finite.
    """
    a, b = _tensor(pair.a), _tensor(pair.b)
    if scale != 1:
        b = single(b) * scale
        if not torch.isfinite(b).all():
            raise BrokenWeights(f"{where}: {pair.name} times its scale of {scale:g} is not finite.", hint="Was its alpha edited?")
    return a, b


def _tensor(entry: Entry) -> Tensor:
    tensor = torch.frombuffer(entry.data, dtype=_DTYPES[entry.dtype]).view(entry.shape[:2])
    return tensor.to(torch.bfloat16) if tensor.dtype.itemsize == 1 else tensor
