"""The folder of a model by its path or its name on the hub; it is fetched by the hub's own client into its own cache."""

from __future__ import annotations

import re
from pathlib import Path

from sfumato.errors import InvalidInput, MissingWeights

# What a model is made of: its folders, where it is a pipeline, or the files that lie beside its configuration. FLUX.1-dev, for one,
# has all of its weights a second time in one file there, which is not read here.
WANTED = ("*/*", "*.json", "*.txt", "*.jinja", "*.model", "model*.safetensors", "attention.safetensors")
# What is never fetched: weights in pickles, other frameworks' copies of the same weights, and copies in another precision.
UNWANTED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5", "*.onnx", "*.onnx_data", "*.gguf", "*.fp16.*", "*.non_ema.*")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_name(reference: str) -> bool:
    """Whether this could be a model's name on the hub, ``owner/name``."""
    return _NAME.fullmatch(reference) is not None and not Path(reference).exists()


def cached(reference: str) -> Path | None:
    """The folder of a model that is here already, by path or in the hub's cache; None where it would have to be fetched.

    Raises:
        InvalidInput: it is neither a folder nor a name on the hub.
    """
    if reference and Path(reference).is_dir():
        return Path(reference).resolve()
    if not is_hub_name(reference):
        raise InvalidInput("model", f"{reference!r} is neither a folder nor a name on the hub.", hint="Write OWNER/NAME, or a path.")
    return _snapshot(reference, local=True)


def located(reference: str) -> Path:
    """The folder of a model, fetched from the hub if need be.

    Raises:
        InvalidInput: it is neither a folder nor a name on the hub.
        MissingWeights: the hub does not answer, or does not give it.
    """
    folder = cached(reference)
    if folder is None:
        folder = _snapshot(reference, local=False)
    if folder is None:
        raise MissingWeights(
            f"{reference} is not on this machine and cannot be fetched.",
            hint="Is there a network, and have you accepted its licence on the hub (hf auth login)? Or name a folder.",
        )
    return folder


def _snapshot(reference: str, *, local: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, local_files_only=local, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)))
    except HFValidationError as error:
        raise InvalidInput("model", f"{reference!r} cannot be a name on the hub.", hint="Write OWNER/NAME, or a path.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None
