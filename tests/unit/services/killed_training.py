"""A worker whose process is killed when its training is well inside phi_2: ``python -m ... STORE TASK``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from safetensors.torch import load

from services.trainer import tasks
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Task


class Killing(tasks.StoredCheckpoint):
    """The real checkpoint, written after every step; at the fourth step of phi_2 the process gets a SIGKILL."""

    def save(self, data: bytes) -> None:
        super().save(data)
        if any(", second|losses" in name and losses.shape[1] >= 4 for name, losses in load(data).items()):
            os.kill(os.getpid(), signal.SIGKILL)


def killing(artifacts: ArtifactStore, task_id: str) -> Killing:
    return Killing(artifacts, task_id, interval=0.0)


if __name__ == "__main__":
    tasks.StoredCheckpoint = killing  # pyright: ignore[reportAttributeAccessIssue]
    tasks.train(Task.model_validate_json(Path(sys.argv[2]).read_text()), ArtifactStore(sys.argv[1]))
