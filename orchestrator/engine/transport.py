"""How tasks reach workers and their results come back: the protocol. `orchestrator.transports` has the implementations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sfumato.errors import SfumatoError
from sfumato.runtime.tasks import Manifest, Task


class Transport(Protocol):
    """Takes tasks to workers and brings manifests back, in any order."""

    def prepare(self, services: Iterable[str]) -> None:
        """Announce that these services will be needed soon; returns at once."""
        ...

    def submit(self, task: Task, urgency: int = 0) -> None:
        """Queue a task for its service; more urgent tasks overtake others that have not begun."""
        ...

    def next(self) -> Manifest:
        """Wait for any task to finish.

        Raises:
            PoisonTask: one failed at every try and became a dead letter; the others continue.
            SfumatoError: a task failed, with the worker's message.
        """
        ...

    def release(self, service: str) -> None:
        """Announce that a service is not needed for now, so that its memory can be used by others."""
        ...


class InterruptibleTransport(Transport, Protocol):
    """A transport whose `next` can be interrupted from another thread."""

    def interrupt(self, error: SfumatoError) -> None:
        """Have `next` raise ``error``, after it has returned what came before; from any thread."""
        ...
