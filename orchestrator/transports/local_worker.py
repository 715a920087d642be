"""A worker process of `LocalTransport`: receives a task, executes it, sends the outcome, until the pipe is closed.

    python -m orchestrator.transports.local_worker DESCRIPTOR MODULE ARTIFACTS

``DESCRIPTOR`` is the file descriptor of its end of the pipe, ``MODULE`` has ``HANDLERS``, and ``ARTIFACTS`` is the artifact store.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection

from orchestrator.transports.local import Result
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.failures import Failure
from sfumato.runtime.models.versions import libraries
from sfumato.runtime.tasks import Handler, Task, perform


def work(pipe: Connection, module: str, artifacts_url: str) -> None:
    """See above."""
    handlers: Mapping[str, Handler] = importlib.import_module(module).HANDLERS
    artifacts = ArtifactStore(artifacts_url)
    versions = libraries()
    while True:
        try:
            task: Task = pipe.recv()
        except EOFError:
            return
        started = time.monotonic()
        try:
            outcome = perform(task, handlers[task.kind], artifacts, versions)
        except Exception as error:  # at the process boundary every error becomes a message to the parent
            outcome = Failure.of(error)
        pipe.send(Result(outcome, started, time.monotonic()))


if __name__ == "__main__":
    descriptor, *rest = sys.argv[1:]
    work(Connection(int(descriptor)), *rest)
