"""Handlers for tests of the transport: real worker processes with nothing heavy in them."""

import os

from sfumato.errors import InvalidInput
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Output, Task


def double(task: Task, _: ArtifactStore) -> Output:
    """Twice every item."""
    return Output([2 * item for item in task.items])


def refuse(_: Task, __: ArtifactStore) -> Output:
    """An error with a field and a hint."""
    raise InvalidInput("size", "is odd.", hint="Make it even.")


def die(_: Task, __: ArtifactStore) -> Output:
    """What the kernel does to a worker without memory."""
    os._exit(9)


def bulk(task: Task, _: ArtifactStore) -> Output:
    """A result larger than a pipe's buffer."""
    return Output(["x" * 200_000 for _ in task.items])


def process(_: Task, __: ArtifactStore) -> Output:
    """Who did it."""
    return Output(os.getpid())


HANDLERS = {
    "echo.double": double,
    "other.double": double,
    "echo.bulk": bulk,
    "echo.refuse": refuse,
    "echo.die": die,
    "echo.process": process,
}
