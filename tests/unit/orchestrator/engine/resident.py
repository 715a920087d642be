"""Workers whose result is which workers were resident with them: every process of a local transport that is alive while a task is done."""

import os

import psutil

from orchestrator.transports import local_worker
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.child_processes import program_of
from sfumato.runtime.tasks import Handler, Output, Task

WORKER = local_worker.__name__


def look(task: Task, _: ArtifactStore) -> Output:
    """The number of resident workers, and this one's process id."""
    transport = psutil.Process(os.getppid()).parent()
    assert transport is not None
    # Each worker is the child of a guard, which has the worker's command line among its arguments.
    resident = [guard for guard in transport.children() if guard.is_running() and WORKER in program_of(guard)]
    return Output([{"resident": len(resident), "process": os.getpid()} for _ in task.items])


HANDLERS: dict[str, Handler] = {f"{service}.look": look for service in ("generator", "scoring", "trainer")}
