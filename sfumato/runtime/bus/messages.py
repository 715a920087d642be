"""What travels on the bus: the form of every message, and the names of its subjects, streams and consumers."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

from sfumato.errors import InvalidInput
from sfumato.runtime.failures import Failure
from sfumato.runtime.tasks import Task

LARGEST_TASK = 768 * 1024
"""Most bytes of a task's message. Blobs travel through the artifact store."""
BESIDE_TASK = 128 * 1024
"""Bytes of a message that are not for the task: a dead letter holds the task and the reason."""
LEAST_PAYLOAD = BESIDE_TASK + 64 * 1024
"""The smallest limit of nats-server for a message with which the system works; its default is 1 MiB."""

CONSUMER = "workers"
"""The durable consumer of a service's tasks: all its workers pull from it."""
EVENTS = "sfumato-events"
DEAD = "sfumato-dead"
ADVISORIES = "sfumato-advisories"
COLLECTOR = "dead-letters"

_SERVICE = re.compile(r"[a-z][a-z0-9_]{0,31}")


class Result(BaseModel):
    """How a task ended. Without a failure its manifest is in the artifact store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    service: str
    failure: Failure | None = None
    # Attempts after which it became a dead letter; 0 if it did not.
    tries: int = 0
    # The process that did it, and its seconds; 0 if it was done before.
    worker: str = ""
    seconds: float = 0.0


class Attempt(BaseModel):
    """Why a task that will be tried again failed, and how many times it has failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    failure: Failure
    failures: int
    # Sequence number of its message in the stream; a task that is published again has another, and its failures count from zero.
    sequence: int


class DeadLetter(BaseModel):
    """A task that failed, or was delivered, too often: the task, the counts, and the last failure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    service: str
    deliveries: int
    failures: int
    failure: Failure
    # The message's text; it may not be a valid task.
    task: str


def encoded(task: Task, most: int = LARGEST_TASK) -> bytes:
    """A task as a message of ``most`` bytes at most.

    Raises:
        InvalidInput: it is larger, or the service's name is not valid.
    """
    checked_service(task.service)
    data = task.model_dump_json().encode()
    if len(data) > most:
        reason = f"a task of stage {task.stage!r} has {len(data)} bytes, and a message takes at most {most}."
        hint = "Make micro-batches smaller; blobs belong in the artifact store."
        if most < LARGEST_TASK:
            hint = "Make micro-batches smaller, or raise max_payload in nats-server's configuration to 1MB, its default."
        raise InvalidInput("batch", reason, hint=hint)
    return data


def checked_service(service: str) -> str:
    """The service's name, if it may be a part of subjects.

    Raises:
        InvalidInput: it has characters other than small letters, digits and underscores.
    """
    if not _SERVICE.fullmatch(service):
        raise InvalidInput("service", f"{service!r} is not a name of a service.", hint="Use small letters, digits and underscores.")
    return service


def stream_of(service: str) -> str:
    """The stream of a service's tasks."""
    return f"sfumato-tasks-{service}"


def task_subject(service: str, task_id: str) -> str:
    """The subject of a task."""
    return f"sfumato.tasks.{service}.{task_id}"


def result_subject(service: str) -> str:
    """The subject of a service's results; ``*`` for all services."""
    return f"sfumato.results.{service}"


def failure_subject(service: str, task_id: str) -> str:
    """The subject of a task's failures."""
    return f"sfumato.failures.{service}.{task_id}"


def dead_subject(service: str, task_id: str) -> str:
    """The subject of a dead letter."""
    return f"sfumato.dead.{service}.{task_id}"
