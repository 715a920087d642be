"""Workers whose result is which workers were resident with them: every process of a local transport that is alive while a task is done."""

import os

import psutil

from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Handler, Output, Task


def look(task: Task, _: ArtifactStore) -> Output:
    """The number of resident workers, and this one's process id."""
    siblings = psutil.Process(os.getppid()).children()
    resident = [process for process in siblings if process.is_running() and any("spawn_main" in part for part in process.cmdline())]
    return Output([{"resident": len(resident), "process": os.getpid()} for _ in task.items])


HANDLERS: dict[str, Handler] = {f"{service}.look": look for service in ("generator", "scoring", "trainer")}
