"""Executes a run on its stored results only. Nothing is computed, and no service is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from orchestrator.engine.engine import Engine, Notify
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.recipe import Recipe
from sfumato.errors import MissingWeights, PoisonTask, SfumatoError
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Manifest, Task


class NotDone(SfumatoError):
    """The replay reached a task without a result: ``task``."""

    def __init__(self, task: Task) -> None:
        super().__init__(f"A task of the stage {task.stage} is not done.")
        self.task = task


def replay(recipe: Recipe[Any, Any, Any], plan: Plan[Any], artifacts: ArtifactStore, notify: Notify = lambda _: None) -> Any:
    """The last state of a run whose results are all in the store.

    Raises:
        NotDone: a result is missing.
        Waiting: the run waits for a person.
    """
    return Engine(plan, plan.spec.batch, _StoredOnly(), artifacts, notify).run(recipe.stages, recipe.start(plan))


def replay_finished(
    name: str, recipe: Recipe[Any, Any, Any], plan: Plan[Any], artifacts: ArtifactStore, *, complete: bool = True
) -> tuple[Any, dict[str, str]]:
    """The last state of a finished run, and the versions of the libraries of its workers.

    ``complete``: no result may be missing. Otherwise tasks without a result count as dead letters.

    Raises:
        MissingWeights: a result is no longer in the store.
    """
    store = _RecordingStore(artifacts)
    transport = _StoredOnly() if complete else _DeadLetters()
    try:
        state = Engine(plan, plan.spec.batch, transport, store, lambda _: None).run(recipe.stages, recipe.start(plan))
    except NotDone as error:
        raise MissingWeights(
            f"The stage {error.task.stage} of {name} has a result that is not in the artifact store.",
            hint=f"Was it cleared? Compute it again: sfumato run --resume {name}",
        ) from None
    return state, {library: " and ".join(sorted(versions)) for library, versions in sorted(store.libraries.items())}


class _StoredOnly:
    """A transport that refuses tasks: the replay ends at the first missing result."""

    def prepare(self, services: Iterable[str]) -> None:
        """Without effect."""

    def submit(self, task: Task, urgency: int = 0) -> None:
        """Refuse the task."""
        raise NotDone(task)

    def next(self) -> Manifest:
        """Never called: `submit` always raises."""
        raise AssertionError("no task was submitted")

    def release(self, service: str) -> None:
        """Without effect."""


class _DeadLetters(_StoredOnly):
    """A transport in which every task is a dead letter."""

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()

    def submit(self, task: Task, urgency: int = 0) -> None:
        """Keep the task for `next`."""
        self._tasks.append(task)

    def next(self) -> Manifest:
        """Report the oldest task as a dead letter."""
        raise PoisonTask(self._tasks.popleft().id, "It is a dead letter.")


class _RecordingStore(ArtifactStore):
    """A store that collects the library versions of the manifests that are read."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        super().__init__(artifacts.url)
        self.libraries: dict[str, set[str]] = {}

    def read_key(self, key: str) -> bytes | None:
        """See `ArtifactStore`."""
        data = super().read_key(key)
        if data is not None and key.startswith("manifests/"):
            for library, version in Manifest.model_validate_json(data).versions.items():
                self.libraries.setdefault(library, set()).add(version)
        return data
