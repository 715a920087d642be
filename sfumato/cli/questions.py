"""Questions that wait for a person: those of a run in this folder, or of one that an orchestrator executes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sfumato.errors import NotFound
from sfumato.runs.records import Answer, Question

if TYPE_CHECKING:
    from orchestrator.runs.records import Record
    from sfumato.runs.client import RunClient
    from sfumato.runtime.artifacts import ArtifactStore


class Questions(Protocol):
    """The questions of one run; ``then`` says how the run continues after the last answer."""

    then: str

    def waiting(self) -> list[Question]:
        """Those that wait, in the order of the run's inputs."""
        ...

    def answer(self, answer: Answer) -> Answer:
        """Answer one of them; the answer that stands, which is an earlier one if there is one."""
        ...

    def fetch(self, digest: str) -> bytes:
        """A picture's file by its SHA-256."""
        ...


class LocalQuestions:
    """The questions of a run in this folder."""

    def __init__(self, record: Record, name: str, artifacts: ArtifactStore) -> None:
        self.then = f"Continue the run: sfumato run --resume {name}"
        self.fetch = artifacts.get
        self._record, self._name, self._artifacts = record, name, artifacts
        self._tasks: dict[str, Any] = {}

    def waiting(self) -> list[Question]:
        """See `Questions`."""
        from orchestrator.runs.reviewing import waiting_questions

        found = waiting_questions(self._record.recipe, self._record.plan(), self._name, self._artifacts)
        self._tasks = {question.id: task for task, question in found}
        return [question for _, question in found]

    def answer(self, answer: Answer) -> Answer:
        """See `Questions`."""
        from orchestrator.runs.reviewing import store_answer

        return store_answer(self._tasks[answer.question_id], self._artifacts, answer.accepted, answer.reason)


class RemoteQuestions:
    """The questions of a run that an orchestrator executes."""

    def __init__(self, client: RunClient, name: str) -> None:
        self.then = f"The run continues automatically: sfumato runs watch {name}"
        self.fetch = client.fetch
        self._client, self._name = client, name

    def waiting(self) -> list[Question]:
        """See `Questions`."""
        return self._client.review(self._name)[1]

    def answer(self, answer: Answer) -> Answer:
        """See `Questions`."""
        stand, _ = self._client.review(self._name, [answer])
        if not stand:
            raise NotFound(f"The question {answer.question_id[:12]} no longer waits.")
        return stand[0]
