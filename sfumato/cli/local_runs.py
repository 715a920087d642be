"""The runs on record in this folder, as far as the artifact store knows them; no orchestrator is asked."""

from __future__ import annotations

import json

from orchestrator.runs.records import Records
from sfumato.runs.records import RunState, RunStatus
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.settings import Settings


class LocalRuns:
    """Lists and shows runs as `sfumato.runs.client.RunClient` does. A context manager, like the client."""

    def __init__(self, settings: Settings) -> None:
        artifacts = ArtifactStore(settings.artifacts_url)
        self._records = Records(artifacts, settings.runs)
        self.fetch = artifacts.get

    def __enter__(self) -> LocalRuns:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is open."""

    def page(self, size: int, token: str = "") -> tuple[list[RunStatus], str]:
        """Up to ``size`` runs, the newest first, and the token of the next page."""
        names, more = self._records.page(size, token)
        return [self._status(name) for name in names], more

    def get(self, name: str) -> tuple[RunStatus, str]:
        """The status of a run and its spec as JSON.

        Raises:
            NotFound: there is no such run in this folder.
        """
        return self._status(name), json.dumps(self._records.record(name)[0].spec)

    def _status(self, name: str) -> RunStatus:
        record, submitted = self._records.record(name)
        ended = self._records.outcome(name)
        models = {part: weights.version for part, weights in record.models.items()}
        state = RunState.INTERRUPTED if ended is None else RunState(ended.outcome.state)
        note = "" if state is RunState.FINISHED else f"If it does not run now, continue it: sfumato run --resume {name}"
        return RunStatus(name, state, submitted, models, note=note, ended=ended)
