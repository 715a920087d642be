"""The bus: NATS JetStream as this system uses it. Import the connection and the messages from here.

    messages.py     the form of every message, and the names of subjects, streams and consumers
    connection.py   `Bus`: a connection that reconnects, streams and consumers as code, publishing
    refusals.py     which refusals of nats-server last, and what to do
    puller.py       pulling messages from one consumer
    worker.py       a service's worker; also a program, ``python -m sfumato.runtime.bus.worker``
    nats_server.py  the embedded nats-server

Subjects:

    sfumato.tasks.<service>.<task id>      a work queue per service; it holds a task at most once, until the task is acknowledged
    sfumato.results.<service>              how tasks ended, for the processes that wait for them; a stream keeps them for a day
    sfumato.failures.<service>.<task id>   why a task failed that will be tried again
    sfumato.dead.<service>.<task id>       dead letters: tasks that failed, or were delivered, too often, with the last reason

The bus is not the record of what is done: the manifests in the artifact store are. If the whole bus is lost, a run publishes again
what it needs.
"""

from sfumato.runtime.bus.connection import Bus, gone, present
from sfumato.runtime.bus.messages import (
    ADVISORIES,
    COLLECTOR,
    CONSUMER,
    DEAD,
    EVENTS,
    LARGEST_TASK,
    Attempt,
    DeadLetter,
    Result,
    checked_service,
    dead_subject,
    encoded,
    failure_subject,
    result_subject,
    stream_of,
    task_subject,
)

__all__ = [
    "ADVISORIES",
    "COLLECTOR",
    "CONSUMER",
    "DEAD",
    "EVENTS",
    "LARGEST_TASK",
    "Attempt",
    "Bus",
    "DeadLetter",
    "Result",
    "checked_service",
    "dead_subject",
    "encoded",
    "failure_subject",
    "gone",
    "present",
    "result_subject",
    "stream_of",
    "task_subject",
]
