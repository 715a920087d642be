"""Pairs that wait for a person, of a run in this folder or of one that an orchestrator drives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sfumato.errors import NotFound
from sfumato.types import Region

if TYPE_CHECKING:
    from orchestrator.reviewing import Pair as Waiting

    from orchestrator.recipes.artaug import Plan
    from sfumato.cli.remote import Remote
    from sfumato.runtime.artifacts import ArtifactStore


@dataclass(frozen=True, slots=True)
class Pair:
    """What a person is asked about; ``before`` and ``after`` are pictures by their SHA-256."""

    id: str
    iteration: int
    prompt: str
    asked: str
    seed: int
    before: str
    after: str
    regions: tuple[Region, ...]
    scores_before: Mapping[str, float]
    scores_after: Mapping[str, float]


class Pairs(Protocol):
    """Where they are asked for and answered; ``then`` says how the run goes on when none is left."""

    then: str

    def waiting(self) -> list[Pair]:
        """Those that wait, in the order of the prompts."""
        ...

    def answer(self, pair: Pair, accepted: bool, reason: str) -> tuple[bool, str]:
        """Answer for one; the answer that stands, which is another's where that came first."""
        ...

    def fetch(self, digest: str) -> bytes:
        """A picture's file."""
        ...


class LocalPairs:
    """Those of a run in this folder."""

    def __init__(self, plan: Plan, name: str, artifacts: ArtifactStore) -> None:
        self.then = f"Let the run go on: sfumato run --resume {name}"
        self.fetch = artifacts.get
        self._plan, self._name, self._artifacts = plan, name, artifacts
        self._known: dict[str, Waiting] = {}

    def waiting(self) -> list[Pair]:
        """See `Pairs`."""
        from orchestrator.reviewing import waiting_pairs

        self._known = {pair.task.id: pair for pair in waiting_pairs(self._plan, self._name, self._artifacts)}
        return [_local(pair) for pair in self._known.values()]

    def answer(self, pair: Pair, accepted: bool, reason: str) -> tuple[bool, str]:
        """See `Pairs`."""
        from orchestrator.reviewing import answer

        stands = answer(self._known[pair.id].task, self._artifacts, accepted, reason).values[0]
        return stands["accepted"], stands["reason"]


class RemotePairs:
    """Those of a run that an orchestrator drives."""

    def __init__(self, remote: Remote, name: str) -> None:
        self.then = f"The run goes on by itself: sfumato runs watch {name}"
        self.fetch = remote.fetch
        self._remote, self._name = remote, name

    def waiting(self) -> list[Pair]:
        """See `Pairs`."""
        from sfumato.cli.remote import regions_of
        from sfumato.v1.orchestrator_pb2 import ReviewRequest

        return [
            Pair(
                id=pair.id,
                iteration=pair.iteration,
                prompt=pair.prompt,
                asked=pair.asked,
                seed=pair.seed,
                before=pair.before,
                after=pair.after,
                regions=regions_of(pair.regions),
                scores_before=dict(sorted(pair.scores_before.items())),
                scores_after=dict(sorted(pair.scores_after.items())),
            )
            for pair in self._remote.call("Review", ReviewRequest(run_id=self._name)).waiting
        ]

    def answer(self, pair: Pair, accepted: bool, reason: str) -> tuple[bool, str]:
        """See `Pairs`."""
        from sfumato.v1.orchestrator_pb2 import Answer, ReviewRequest

        said = Answer(pair_id=pair.id, accepted=accepted, reason=reason)
        stand = self._remote.call("Review", ReviewRequest(run_id=self._name, answers=[said])).answers
        if not stand:
            raise NotFound(f"The pair {pair.id[:12]} waits no more.")
        return stand[0].accepted, stand[0].reason


def _local(waiting: Waiting) -> Pair:
    sample, item = waiting.sample, waiting.task.items[0]
    return Pair(
        id=waiting.task.id,
        iteration=waiting.iteration,
        prompt=sample.prompt,
        asked=sample.asked,
        seed=sample.seed,
        before=item["a"],
        after=item["b"],
        regions=sample.regions,
        scores_before=dict(sample.scores_before or {}),
        scores_after=dict(sample.scores_after or {}),
    )
