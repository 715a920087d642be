"""What an ArtAug run knows: carriers of data, all immutable, and when it goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, overload

from orchestrator.recipes.artaug.spec import ArtAugSpec
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.recipe import Conclusion
from orchestrator.recipes.tasks import Painted
from sfumato.runs.records import DeadLettered, Picture
from sfumato.runtime.tasks import Json, Manifest
from sfumato.types import Region

Scores = Mapping[str, float]
# What the judge says of each set of pictures, by the set's name; None where there was nothing to take a mean of.
Marks = Mapping[str, Mapping[str, float | None]]

# The phases of a run.
ITERATION, COMPARISON = "iteration", "comparison"

KEPT = "kept"
# The filter's rules in the order in which they are asked (section 3.2), by the name under which they are counted.
RULES = ("no_advice", "aesthetic", "clip", "nudenet", "vlm_review", "human_review", "set_aside")
# No rule: a task of the sample became a dead letter, and the run continued without the sample.
SET_ASIDE = "set_aside"

TOO_FEW = "too few pairs survive"
DIVERGED = "every training diverged"
NO_GAIN = "no alpha improves the tuning prompts"
ENOUGH = "max_iterations"


ArtAugPlan: TypeAlias = Plan[ArtAugSpec]


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
class HeldOutResult:
    """The held-out pictures of one model, and their scores, in the order of the prompts."""

    pictures: tuple[str, ...]
    scores: tuple[Scores, ...] = ()


@dataclass(frozen=True, slots=True)
class Training:
    """How one pair's training went: the loss of every step, or why it was given up; ``dead_letter`` if its task failed at every try."""

    losses: tuple[float, ...]
    rank: int
    diverged: str
    details: Mapping[str, Json]
    dead_letter: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One strength that is tried: the model so far and ``alpha`` times the new mean, as one LoRA file."""

    alpha: float
    stacked: str
    pictures: tuple[str, ...] = ()
    aesthetic: float = 0.0
    clip: float = 0.0


@dataclass(frozen=True, slots=True)
class TuningAttempt:
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
    heldout: HeldOutResult | None = None

    @property
    def compared(self) -> bool:
        """Whether it is only there to be compared with: it goes on, however bad it is."""
        return self.objective != "differential"


@dataclass(frozen=True, slots=True)
class Iteration:
    """One time round: every sample with its verdict, and the training, if there was one."""

    index: int
    samples: Sequence[Sample]
    attempt: TuningAttempt | None

    @property
    def verdicts(self) -> dict[str, int]:
        """How many samples were kept, and how many each rule took, in the order of the rules."""
        counts = Counter(sample.verdict for sample in self.samples)
        return {verdict: counts[verdict] for verdict in (KEPT, *RULES)}


@dataclass(frozen=True, slots=True)
class State:
    """The run so far. Files are named by their SHA-256 in the artifact store.

    ``samples`` and ``attempt`` belong to the iteration in work; ``base`` and ``ceiling`` are the base model's held-out pictures, of
    plain prompts and of those that ask for beauty outright; ``naive`` is the comparison's attempt, ``looked`` the pairs in which the VLM
    looked again after the last iteration, ``judged`` what the independent judge says, and ``versions`` with which libraries it was
    painted, scored and trained.
    """

    samples: Sequence[Sample]
    iterations: tuple[Iteration, ...] = ()
    attempt: TuningAttempt | None = None
    base: HeldOutResult | None = None
    ceiling: HeldOutResult | None = None
    naive: TuningAttempt | None = None
    looked: tuple[Sample, ...] = ()
    judged: Marks | None = None
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stop_reason: str = ""

    @property
    def fused(self) -> tuple[Iteration, ...]:
        """The iterations whose adapters are in the model."""
        return tuple(iteration for iteration in self.iterations if iteration.attempt and iteration.attempt.alpha)

    @property
    def adapter(self) -> str:
        """The LoRA of the model so far, all iterations in one file; empty for the base model."""
        fused = self.fused
        return fused[-1].attempt.stacked if fused and fused[-1].attempt else ""

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


def fresh(plan: ArtAugPlan) -> Fresh:
    """Every sample with its prompt and its seed: the same in every iteration, so that iterations can be compared."""
    return Fresh(plan.inputs["train"], plan.spec.prompts.seed)


def start(plan: ArtAugPlan) -> State:
    """A run at its beginning."""
    return State(fresh(plan))


def dead_lettered(state: State) -> list[DeadLettered]:
    """Everything that the run continued without, in the order of the iterations and the reasons."""
    counted: dict[tuple[int, str], Counter[str]] = {}
    for iteration in state.iterations:
        for sample in iteration.samples:
            if sample.verdict == SET_ASIDE:
                counted.setdefault((iteration.index, sample.reason), Counter())["samples"] += 1
    for index, attempt in [*((iteration.index, iteration.attempt) for iteration in state.iterations), (0, state.naive)]:
        for training in attempt.trainings if attempt else ():
            if training.dead_letter:
                counted.setdefault((index, training.diverged), Counter())["trainings"] += 1
    return [
        DeadLettered(phase=ITERATION if index else COMPARISON, iteration=index, reason=reason, lost=dict(lost))
        for (index, reason), lost in sorted(counted.items())
    ]


def shown(sample: Sample) -> tuple[Picture, ...]:
    """X with the advice, and X', where a sample has both."""
    if sample.before is None or sample.after is None:
        return ()
    before = Picture(
        caption=sample.prompt, digest=sample.before.picture, regions=sample.regions, scores=dict(sample.scores_before or {})
    )
    return before, Picture(caption=sample.prompt, digest=sample.after.picture, scores=dict(sample.scores_after or {}))


def again(_: ArtAugPlan, state: State) -> bool:
    """Whether there is another iteration."""
    return not state.stop_reason


def conclude(state: State) -> Conclusion:
    """How the run came to its end."""
    return Conclusion(state.stop_reason, len(state.iterations), tuple(dead_lettered(state)))
