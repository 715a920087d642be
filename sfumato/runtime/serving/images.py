"""Images of messages to arrays and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sfumato.errors import InvalidInput, NotFound
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import decode_image, encode_png
from sfumato.types import Image
from sfumato.v1 import common_pb2


def read_image(image: common_pb2.Image, field: str, artifacts: ArtifactStore) -> Image:
    """The image that a message holds or names, ``[height, width, 3]``; its header is checked before it is decoded.

    Raises:
        InvalidInput: named after ``field``, as `sfumato.runtime.images.decode_image`.
        NotFound: there is no such artifact.
        BrokenWeights: the artifact is damaged.
    """
    if image.WhichOneof("content") == "data":
        return decode_image(image.data, f"{field}.data")
    return decode_image(read_artifact(image.artifact, f"{field}.artifact", artifacts), f"{field}.artifact")


def write_image(image: Image, delivery: common_pb2.Delivery, artifacts: ArtifactStore) -> common_pb2.Image:
    """The image as PNG, in the message or in the store."""
    png = encode_png(image)
    if delivery == common_pb2.DELIVERY_ARTIFACT:
        return common_pb2.Image(artifact=artifacts.put(png))
    return common_pb2.Image(data=png)


def read_artifact(digest: str, field: str, artifacts: ArtifactStore) -> bytes:
    """The bytes of an artifact that a request names.

    Raises:
        NotFound: there is none.
        BrokenWeights: it is damaged.
    """
    if not artifacts.holds(digest):
        raise NotFound(f"{field}: there is no artifact {digest}.", hint="Is it in the store that this service uses?")
    return artifacts.get(digest)


@contextmanager
def within(prefix: str, **names: str) -> Iterator[None]:
    """Name the field of an engine's `InvalidInput` by its path in the request.

    ``width`` becomes ``painting.width`` within "painting"; ``names`` maps fields that have another name in the contract, such as
    ``seed="seeds"``.
    """
    try:
        yield
    except InvalidInput as error:
        told = error.message.removeprefix(f"{error.field}: ")
        path = [prefix, names.get(error.field, error.field)]
        raise InvalidInput(".".join(filter(None, path)), told, hint=error.hint) from error
