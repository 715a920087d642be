"""The model of a request, on a service with one base model."""

from __future__ import annotations

from sfumato.errors import BrokenWeights, InvalidInput, NotFound
from sfumato.lora.adapter import Adapter, stack
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.models.adapters import Fused, decode_adapter
from sfumato.runtime.serving.images import read_artifact
from sfumato.v1 import common_pb2


def check_base(model: common_pb2.ModelRef, base: str) -> None:
    """Check that the request names the served base, or none.

    Raises:
        NotFound: it names another base.
    """
    if model.base and model.base != base:
        raise NotFound(f"model.base: this service does not have {model.base}.", hint=f"It serves {base}.")


def fused_of(model: common_pb2.ModelRef) -> Fused:
    """The model's adapters and their weights, as a key."""
    return tuple((ref.artifact, ref.weight if ref.HasField("weight") else 1.0) for ref in model.adapters)


def adapter_of(model: common_pb2.ModelRef, artifacts: ArtifactStore) -> Adapter | None:
    """The weighted sum of the model's adapters as one adapter; None if it has none.

    Raises:
        NotFound: there is no such artifact.
        InvalidInput: an artifact is no adapter; the field is named as in the model's message.
        BrokenWeights: an artifact is damaged.
    """
    if not model.adapters:
        return None
    adapters = []
    for index, ref in enumerate(model.adapters):
        field = f"adapters[{index}].artifact"
        data = read_artifact(ref.artifact, f"model.{field}", artifacts)
        try:
            adapters.append(decode_adapter(data))
        except BrokenWeights as error:
            raise InvalidInput(field, error.message, hint=error.hint) from error
    return stack(adapters, [weight for _, weight in fused_of(model)])
