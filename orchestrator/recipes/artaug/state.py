"""The state of an ArtAug run: immutable dataclasses, and the condition for another iteration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, overload

from orchestrator.recipes.artaug.spec import ArtAugSpec
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.recipe import Conclusion
from orchestrator.recipes.tasks import Painted
from sfumato.runs.records import DeadLettered, ShownPicture
from sfumato.runtime.tasks import Json, Manifest
from sfumato.types import Region

Scores = Mapping[str, float]
# The judge's means of each set of pictures, by the set's name; None for a mean of no values.
Marks = Mapping[str, Mapping[str, float | None]]

# The phases of a run.
ITERATION, COMPARISON = "iteration", "comparison"

KEPT = "kept"
# The filter's rules in the order in which they are applied (section 3.2), by the name under which they are counted.
RULES = ("no_advice", "aesthetic", "clip", "nudenet", "vlm_review", "human_review", "set_aside")
# Not a rule: a task of the sample became a dead letter, and the run continued without the sample.
SET_ASIDE = "set_aside"

TOO_FEW = "too few pairs survive"
DIVERGED = "every training diverged"
NO_GAIN = "no alpha improves the tuning prompts"
ENOUGH = "max_iterations"


ArtAugPlan: TypeAlias = Plan[ArtAugSpec]


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with the results of the stages that it has passed; None or empty for the others.

    ``asked`` is the prompt as submitted, ``prompt`` as refined. ``verdict`` is the first rule that rejects the pair, or ``kept``;
    ``reason`` is the reviewer's.
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
        """The increase of the aesthetic score from X to X'; 0 if a picture is missing."""
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
    """The training of one pair: the loss of every step, or why it diverged; ``dead_letter`` if its task failed at every try."""

    losses: tuple[float, ...]
    rank: int
    diverged: str
    details: Mapping[str, Json]
    dead_letter: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate alpha: the current model plus ``alpha`` times the new mean, as one LoRA file."""

    alpha: float
    stacked: str
    pictures: tuple[str, ...] = ()
    aesthetic: float = 0.0
    clip: float = 0.0


@dataclass(frozen=True, slots=True)
class TuningAttempt:
    """One training on selected pairs, from the adapters to the tuned model and its held-out pictures.

    ``base`` is the LoRA of the model that it starts from (empty: the base model), made of ``earlier``, the means and alphas of previous
    iterations. ``alpha`` is 0 until one is chosen, and stays 0 if none is an improvement.
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
        """Whether it only serves the comparison; it then continues without an improvement."""
        return self.objective != "differential"


@dataclass(frozen=True, slots=True)
class Iteration:
    """A finished iteration: every sample with its verdict, and the training, if there was one."""

    index: int
    samples: Sequence[Sample]
    attempt: TuningAttempt | None

    @property
    def verdicts(self) -> dict[str, int]:
        """The number of samples that were kept, and that each rule rejected, in the order of the rules."""
        counts = Counter(sample.verdict for sample in self.samples)
        return {verdict: counts[verdict] for verdict in (KEPT, *RULES)}


@dataclass(frozen=True, slots=True)
class State:
    """The run so far. Files are named by their SHA-256 in the artifact store.

    ``samples`` and ``attempt`` belong to the current iteration; ``base`` and ``ceiling`` are the base model's held-out pictures, of the
    plain prompts and of those that explicitly ask for the learned style; ``naive`` is the comparison's attempt, ``looked`` the pairs that
    were grounded again after the last iteration, ``judged`` the judge's means, and ``versions`` the libraries' versions of the workers.
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
        """The LoRA of the current model, all iterations in one file; empty for the base model."""
        fused = self.fused
        return fused[-1].attempt.stacked if fused and fused[-1].attempt else ""

    def with_samples(self, samples: Sequence[Sample]) -> State:
        """A copy with other samples."""
        return replace(self, samples=samples)

    def made_with(self, done: Iterable[Manifest]) -> State:
        """A copy that includes the library versions of these tasks' workers."""
        versions = {library: set(seen) for library, seen in self.versions.items()}
        for manifest in done:
            for library, version in manifest.versions.items():
                versions.setdefault(library, set()).add(version)
        return replace(self, versions={library: tuple(sorted(versions[library])) for library in sorted(versions)})


@dataclass(frozen=True, slots=True)
class Fresh(Sequence[Sample]):
    """Samples before the first stage, created lazily."""

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
    """Every sample with its prompt and its seed: the same in every iteration, so that iterations are comparable."""
    return Fresh(plan.inputs["train"], plan.spec.prompts.seed)


def start(plan: ArtAugPlan) -> State:
    """The initial state of a run."""
    return State(fresh(plan))


def dead_lettered(state: State) -> list[DeadLettered]:
    """The samples and trainings that were lost to dead letters, by iteration and reason."""
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


def shown(sample: Sample) -> tuple[ShownPicture, ...]:
    """X with the advice, and X', if a sample has both."""
    if sample.before is None or sample.after is None:
        return ()
    before = ShownPicture(
        caption=sample.prompt, digest=sample.before.picture, regions=sample.regions, scores=dict(sample.scores_before or {})
    )
    return before, ShownPicture(caption=sample.prompt, digest=sample.after.picture, scores=dict(sample.scores_after or {}))


def again(_: ArtAugPlan, state: State) -> bool:
    """Whether there is another iteration."""
    return not state.stop_reason


def conclude(state: State) -> Conclusion:
    """The conclusion of a finished run."""
    return Conclusion(state.stop_reason, len(state.iterations), tuple(dead_lettered(state)))
