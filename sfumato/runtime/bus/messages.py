"""What travels on the bus: the form of every message, and the names of its subjects, streams and consumers."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

from sfumato.errors import InvalidInput
from sfumato.runtime.failures import Failure
from sfumato.runtime.tasks import Task

LARGEST_TASK = 768 * 1024
"""Bytes of a task's message. Blobs travel through the artifact store; nats-server accepts 1 MiB, and a dead letter adds its reason."""

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
    # After so many tries it was set aside; 0: it was not.
    tries: int = 0
    # Which process did it, and for how many seconds; 0 where it had been done before.
    worker: str = ""
    seconds: float = 0.0


class Attempt(BaseModel):
    """Why a task that will be tried again failed, and for the how-many-th time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    failure: Failure
    failures: int
    # Where its message lies in the stream: a task that is put into the queue anew starts anew.
    sequence: int


class DeadLetter(BaseModel):
    """A task that was set aside: as it was, how often it was given out and failed, and why it failed last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    service: str
    deliveries: int
    failures: int
    failure: Failure
    # The message as it was; it may be no task at all.
    task: str


def encoded(task: Task) -> bytes:
    """A task as a message.

    Raises:
        InvalidInput: it is larger than messages may be, or its service's name cannot be one.
    """
    checked_service(task.service)
    data = task.model_dump_json().encode()
    if len(data) > LARGEST_TASK:
        reason = f"a task of stage {task.stage!r} has {len(data)} bytes, and a message takes {LARGEST_TASK}."
        raise InvalidInput("batch", reason, hint="Make micro-batches smaller; blobs belong into the artifact store.")
    return data


def checked_service(service: str) -> str:
    """A service's name, which becomes a part of subjects.

    Raises:
        InvalidInput: it has characters other than small letters, digits and underscores.
    """
    if not _SERVICE.fullmatch(service):
        raise InvalidInput("service", f"{service!r} is no name of a service.", hint="Use small letters, digits and underscores.")
    return service


def stream_of(service: str) -> str:
    """The stream of a service's tasks."""
    return f"sfumato-tasks-{service}"


def task_subject(service: str, task_id: str) -> str:
    """Where a task is published."""
    return f"sfumato.tasks.{service}.{task_id}"


def result_subject(service: str) -> str:
    """Where a service's results are published; ``*`` for all services."""
    return f"sfumato.results.{service}"


def failure_subject(service: str, task_id: str) -> str:
    """Where it is published why a task failed."""
    return f"sfumato.failures.{service}.{task_id}"


def dead_subject(service: str, task_id: str) -> str:
    """Where a dead letter is kept."""
    return f"sfumato.dead.{service}.{task_id}"
