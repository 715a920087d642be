"""Reading and writing safetensors so that the same content is always the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sfumato.errors import BrokenWeights, InvalidInput, MissingWeights
from sfumato.runtime.files import write_whole

# The one key of the header's free text. Several keys would be written in the order of a hash map, another in every process.
METADATA = "sfumato"


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors by name, and ``metadata`` as one JSON object under one key; the file appears whole or not at all.

    Raises:
        InvalidInput: the path is a folder, or cannot be written.
    """
    free = {METADATA: json.dumps(dict(metadata), sort_keys=True, ensure_ascii=True)} if metadata else None
    data = save({name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}, metadata=free)
    if path.is_dir():
        raise InvalidInput("output", f"{path} is a folder.", hint="Give the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise InvalidInput("output", f"{path} cannot be written: {error.strerror}.", hint="Is there room, and leave to write?") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """All tensors of a file, our own metadata, and the header's free text unchanged.

    Raises:
        MissingWeights: there is no such file.
        BrokenWeights: it is not a safetensors file.
    """
    if not path.is_file():
        raise MissingWeights(f"There is no adapter at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
            header = dict(file.metadata() or {})
    except SafetensorError as error:
        raise BrokenWeights(f"{path} is not a readable safetensors file: {error}.", hint="Fetch it again.") from error
    try:
        own = json.loads(header.get(METADATA, "{}"))
    except json.JSONDecodeError:
        own = {}  # another program's key of the same name; free text never changes the update
    return tensors, {str(key): str(value) for key, value in own.items()} if isinstance(own, dict) else {}, header
