"""What an ArtAug run knows: carriers of data, all immutable, and when it goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

from orchestrator.spec import PromptSets, RunSpec
from sfumato.runtime.tasks import Json, Manifest
from sfumato.types import Region

Scores = Mapping[str, float]
# What the judge says of each set of pictures, by the set's name; None where there was nothing to take a mean of.
Marks = Mapping[str, Mapping[str, float | None]]

KEPT = "kept"
# The filter's rules in the order in which they are asked (section 3.2), by the name under which they are counted.
RULES = ("no_advice", "aesthetic", "clip", "nudenet", "vlm_review", "human_review", "set_aside")
# No rule: a task of the sample's was given up after several tries, and the run went on without the sample.
SET_ASIDE = "set_aside"

TOO_FEW = "too few pairs survive"
DIVERGED = "every training diverged"
NO_GAIN = "no alpha improves the tuning prompts"
ENOUGH = "max_iterations"


@dataclass(frozen=True, slots=True)
class Model:
    """A model's version (the hash of its weights), and its reference (see `sfumato.runtime.models.references`)."""

    version: str
    reference: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What the run was asked for; ``models`` are ``generator``, ``understanding``, ``scorers`` and, where there is one, ``judge``."""

    spec: RunSpec
    prompts: PromptSets
    models: Mapping[str, Model]


@dataclass(frozen=True, slots=True)
class Painted:
    """A picture in the store: SHA-256 of its PNG, and of the file that holds its final latents under the name ``latents``."""

    picture: str
    latents: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt on its way: what each stage added, None or empty where it has not been or had nothing to do.

    ``asked`` is the prompt as it was given, ``prompt`` as it is painted. ``verdict`` is the first rule that spoke against the
    pair, or ``kept``; ``reason`` is what a reviewer said.
    """

    asked: str
    prompt: str
    seed: int
    before: Painted | None = None
    regions: tuple[Region, ...] = ()
    rejected: str = ""
    after: Painted | None = None
    scores_before: Scores | None = None
    scores_after: Scores | None = None
    cosine: float | None = None
    verdict: str = ""
    reason: str = ""
    regions_after: tuple[Region, ...] = ()

    @property
    def gain(self) -> float:
        """How much the aesthetic score rose; nothing without both pictures."""
        if self.scores_before is None or self.scores_after is None:
            return 0.0
        return self.scores_after["aesthetic"] - self.scores_before["aesthetic"]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out pictures of one model, and their scores, in the order of the prompts."""

    pictures: tuple[str, ...]
    scores: tuple[Scores, ...] = ()


@dataclass(frozen=True, slots=True)
class Training:
    """How one pair's training went: the loss of every step, or why it was given up; ``set_aside`` if nobody could even do the task."""

    losses: tuple[float, ...]
    rank: int
    diverged: str
    details: Mapping[str, Json]
    set_aside: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One strength that is tried: the model so far and ``alpha`` times the new mean, as one LoRA file."""

    alpha: float
    stacked: str
    pictures: tuple[str, ...] = ()
    aesthetic: float = 0.0
    clip: float = 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One training on chosen pairs, from adapters to a tuned model and what it paints.

    ``base`` is the LoRA of the model it stands on (empty: the base model), made of ``earlier``, the means and strengths of former
    iterations. ``alpha`` is 0 until one is chosen, and stays so if none is any good.
    """

    objective: str
    pairs: tuple[Sample, ...]
    base: str
    earlier: tuple[tuple[str, float], ...]
    adapters: tuple[str, ...] = ()
    trainings: tuple[Training, ...] = ()
    average: str = ""
    compression: Mapping[str, float] | None = None
    candidates: tuple[Candidate, ...] = ()
    standing: Candidate | None = None
    alpha: float = 0.0
    stacked: str = ""
    lora: str = ""
    heldout: HeldOut | None = None

    @property
    def compared(self) -> bool:
        """Whether it is only there to be compared with: it goes on, however bad it is."""
        return self.objective != "differential"


@dataclass(frozen=True, slots=True)
class Iteration:
    """One time round: every sample with its verdict, and the training, if there was one."""

    index: int
    samples: Sequence[Sample]
    trial: Trial | None

    @property
    def verdicts(self) -> dict[str, int]:
        """How many samples were kept, and how many each rule took, in the order of the rules."""
        counts = Counter(sample.verdict for sample in self.samples)
        return {verdict: counts[verdict] for verdict in (KEPT, *RULES)}


@dataclass(frozen=True, slots=True)
class State:
    """The run so far. Files are named by their SHA-256 in the artifact store.

    ``samples`` and ``trial`` belong to the iteration in work; ``base`` and ``ceiling`` are the base model's held-out pictures, of
    plain prompts and of those that ask for beauty outright; ``naive`` is the comparison's trial, ``looked`` the pairs in which the VLM
    looked again after the last iteration, ``judged`` what the independent judge says, and ``versions`` with which libraries it was
    painted, scored and trained.
    """

    samples: Sequence[Sample]
    iterations: tuple[Iteration, ...] = ()
    trial: Trial | None = None
    base: HeldOut | None = None
    ceiling: HeldOut | None = None
    naive: Trial | None = None
    looked: tuple[Sample, ...] = ()
    judged: Marks | None = None
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stop_reason: str = ""

    @property
    def fused(self) -> tuple[Iteration, ...]:
        """The iterations whose adapters are in the model."""
        return tuple(iteration for iteration in self.iterations if iteration.trial and iteration.trial.alpha)

    @property
    def adapter(self) -> str:
        """The LoRA of the model so far, all iterations in one file; empty for the base model."""
        fused = self.fused
        return fused[-1].trial.stacked if fused and fused[-1].trial else ""

    def with_samples(self, samples: Sequence[Sample]) -> State:
        """A copy with other samples."""
        return replace(self, samples=samples)

    def made_with(self, done: Iterable[Manifest]) -> State:
        """A copy that knows the libraries of these tasks' workers as well."""
        versions = {library: set(known) for library, known in self.versions.items()}
        for manifest in done:
            for library, version in manifest.versions.items():
                versions.setdefault(library, set()).add(version)
        return replace(self, versions={library: tuple(sorted(versions[library])) for library in sorted(versions)})


@dataclass(frozen=True, slots=True)
class Fresh(Sequence[Sample]):
    """Samples to which nothing has happened yet, made as they are looked at."""

    prompts: Sequence[str]
    seed: int

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(prompt, prompt, self.seed + index) for index, prompt in enumerate(self.prompts))

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...

    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self))))
        at = range(len(self))[index]
        return Sample(self.prompts[at], self.prompts[at], self.seed + at)


def fresh(plan: Plan) -> Fresh:
    """Every sample with its prompt and its seed: the same in every iteration, so that iterations can be compared."""
    return Fresh(plan.prompts.train, plan.spec.prompts.seed)


def start(plan: Plan) -> State:
    """A run at its beginning."""
    return State(fresh(plan))


@dataclass(frozen=True, slots=True)
class SetAside:
    """What an iteration (0: the comparison) went on without, and why."""

    iteration: int
    reason: str
    samples: int
    pairs: int

    def __str__(self) -> str:
        counts = [f"{count} {what}" for count, what in ((self.samples, "samples"), (self.pairs, "trainings")) if count]
        where = f"iteration {self.iteration}" if self.iteration else "the comparison"
        return f"{' and '.join(counts)} of {where} set aside: {self.reason}"


def set_aside(state: State) -> list[SetAside]:
    """All that was set aside, in the order of the iterations and the reasons."""
    counted: dict[tuple[int, str], list[int]] = {}
    for iteration in state.iterations:
        for sample in iteration.samples:
            if sample.verdict == SET_ASIDE:
                counted.setdefault((iteration.index, sample.reason), [0, 0])[0] += 1
    for index, trial in [*((iteration.index, iteration.trial) for iteration in state.iterations), (0, state.naive)]:
        for training in trial.trainings if trial else ():
            if training.set_aside:
                counted.setdefault((index, training.diverged), [0, 0])[1] += 1
    return [SetAside(*key, *counts) for key, counts in sorted(counted.items())]


def again(_: Plan, state: State) -> bool:
    """Whether there is another iteration."""
    return not state.stop_reason
