"""ArtAug, one iteration (paper sections 3.1 to 3.4): the stages stand in the order in which a sample passes them.

X is painted from prompt P and seed s; a VLM says what would please, region by region; X' is painted from the same P and s
under that advice; the pair is kept when X' is better; every kept pair becomes an adapter; their mean is fused and measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.engine import Each, Gather
from orchestrator.spec import RunSpec
from sfumato.runtime.tasks import Manifest, Task
from sfumato.types import Region

Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Model:
    """A model's version (the hash of its weights) and the folder it lies in here."""

    version: str
    path: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What the run was asked for; ``models`` are ``generator``, ``understanding`` and ``scorers``."""

    spec: RunSpec
    prompts: tuple[str, ...]
    heldout: tuple[str, ...]
    models: Mapping[str, Model]


@dataclass(frozen=True, slots=True)
class Painted:
    """A picture in the store: SHA-256 of its PNG, and of the file that holds its final latents under the name ``latents``."""

    picture: str
    latents: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt on its way: what each stage added, None where it has not been or had nothing to do."""

    prompt: str
    seed: int
    before: Painted | None = None
    regions: tuple[Region, ...] = ()
    rejected: str = ""
    after: Painted | None = None
    scores_before: Scores | None = None
    scores_after: Scores | None = None
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A prompt no pair was made from, painted by the base and by the tuned model from one seed."""

    prompt: str
    seed: int
    base: str = ""
    tuned: str = ""
    scores_base: Scores | None = None
    scores_tuned: Scores | None = None


@dataclass(frozen=True, slots=True)
class State:
    """The run so far. Files are named by their SHA-256 in the artifact store."""

    samples: tuple[Sample, ...]
    heldout: tuple[HeldOut, ...]
    adapters: tuple[str, ...] = ()
    losses: tuple[tuple[float, ...], ...] = ()
    diverged: int = 0
    average: str = ""
    compression: Mapping[str, float] | None = None
    fused: str = ""

    @property
    def kept(self) -> tuple[Sample, ...]:
        """The pairs that passed the filter."""
        return tuple(sample for sample in self.samples if sample.verdict == KEPT)

    @property
    def verdicts(self) -> dict[str, int]:
        """How many samples each rule of the filter took, in the order of the rules."""
        counts = Counter(sample.verdict for sample in self.samples if sample.verdict)
        return {rule: counts[rule] for rule in RULES if counts[rule]}

    def with_samples(self, samples: tuple[Sample, ...]) -> State:
        """A copy with other samples."""
        return replace(self, samples=samples)


KEPT = "kept"
# The filter's rules in the order in which they are asked, by the name under which they are counted.
RULES = ("no advice", "aesthetic did not rise", "agreement with the prompt fell", "better pairs filled the places", KEPT)


def start(plan: Plan) -> State:
    """Every sample with its prompt and its seed."""
    first, heldout = plan.spec.prompts.seed, plan.spec.evaluate.seed
    return State(
        tuple(Sample(prompt, first + index) for index, prompt in enumerate(plan.prompts)),
        tuple(HeldOut(prompt, heldout + index) for index, prompt in enumerate(plan.heldout)),
    )


# --- generate: X from P and s (A1, step 1) ---


def generate(plan: Plan, samples: tuple[Sample, ...]) -> Task:
    """Paint every sample without advice."""
    return _paint(plan, "generate", [(sample.prompt, sample.seed, ()) for sample in samples])


def absorb_generated(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note X."""
    return tuple(replace(sample, before=painted) for sample, painted in zip(samples, _painted(done), strict=True))


# --- ground: u(X) = {(P_i, M_i)} (A1, step 2) ---


def ground(plan: Plan, samples: tuple[Sample, ...]) -> Task:
    """Ask the VLM where which words would help."""
    items = tuple({"prompt": sample.prompt, "picture": _of(sample.before).picture} for sample in samples)
    model = plan.models["understanding"]
    return Task(
        stage="ground",
        kind="grounding.ground",
        items=items,
        params=plan.spec.ground.model_dump(),
        model=model.version,
        model_path=model.path,
    )


def absorb_grounded(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note the regions, or why the answer was of no use."""
    grounded = []
    for sample, value in zip(samples, done.values, strict=True):
        regions = tuple(Region(region["prompt"], tuple(region["box"])) for region in value["regions"])
        grounded.append(replace(sample, regions=regions, rejected=value["rejected"]))
    return tuple(grounded)


# --- regenerate: X' from the same P and s under the advice (A1, step 3) ---


def regenerate(plan: Plan, samples: tuple[Sample, ...]) -> Task | None:
    """Paint the samples that have advice again."""
    advised = [(sample.prompt, sample.seed, sample.regions) for sample in samples if sample.regions]
    return _paint(plan, "regenerate", advised) if advised else None


def absorb_regenerated(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note X'."""
    painted = iter(_painted(done))
    return tuple(replace(sample, after=next(painted)) if sample.regions else sample for sample in samples)


# --- score: both pictures of a pair (A2) ---


def score(plan: Plan, samples: tuple[Sample, ...]) -> Task | None:
    """Score X and X' of the samples that have both."""
    pictures = [(sample.prompt, painted.picture) for sample in samples if sample.after for painted in (_of(sample.before), sample.after)]
    return _score(plan, "score", pictures) if pictures else None


def absorb_scored(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note both scores."""
    scores = iter(done.values)
    return tuple(replace(sample, scores_before=next(scores), scores_after=next(scores)) if sample.after else sample for sample in samples)


# --- filter: which pairs are kept (A2, section 3.2) ---


def judge(plan: Plan, state: State, _: list[Manifest]) -> State:
    """The verdict of the rules on every pair; of too many good ones, those whose aesthetic score rose most."""
    samples = [replace(sample, verdict=verdict(sample)) for sample in state.samples]
    good = sorted(
        (index for index, sample in enumerate(samples) if sample.verdict == KEPT), key=lambda index: (-_gain(samples[index]), index)
    )
    for index in good[plan.spec.filter.keep :]:
        samples[index] = replace(samples[index], verdict=RULES[3])
    return replace(state, samples=tuple(samples))


def verdict(sample: Sample) -> str:
    """The first rule that speaks against a pair, or ``kept``: aesthetic(X') > aesthetic(X) and CLIP(P, X') >= CLIP(P, X)."""
    if sample.scores_before is None or sample.scores_after is None:
        return RULES[0]
    if not sample.scores_after["aesthetic"] > sample.scores_before["aesthetic"]:
        return RULES[1]
    if not sample.scores_after["clip"] >= sample.scores_before["clip"]:
        return RULES[2]
    return KEPT


def _gain(sample: Sample) -> float:
    assert sample.scores_before is not None and sample.scores_after is not None
    return sample.scores_after["aesthetic"] - sample.scores_before["aesthetic"]


# --- train: phi_1 and phi_2 of every kept pair (A3, section 3.3) ---


def train(plan: Plan, state: State) -> list[Task]:
    """A task for every few kept pairs; each pair is trained as if it were alone."""
    model, settings, paint = plan.models["generator"], plan.spec.train, plan.spec.paint
    size = {"width": paint.width, "height": paint.height}
    params = settings.model_dump(exclude={"together"}) | size | {"guidance": paint.guidance, "adapter": ""}
    items = [
        {"prompt": sample.prompt, "seed": sample.seed, "before": _of(sample.before).latents, "after": _of(sample.after).latents}
        for sample in state.kept
    ]
    return [
        Task(stage="train", kind="trainer.train", items=tuple(chunk), params=params, model=model.version, model_path=model.path)
        for chunk in _chunks(items, settings.together)
    ]


def absorb_trained(_: Plan, state: State, done: list[Manifest]) -> State:
    """Note the adapters of the pairs that did not diverge."""
    adapters = tuple(
        manifest.files[f"{index}.safetensors"] for manifest in done for index, value in enumerate(manifest.values) if not value["diverged"]
    )
    values = [value for manifest in done for value in manifest.values]
    losses = tuple(tuple(value["losses"]) for value in values if not value["diverged"])
    return replace(state, adapters=adapters, losses=losses, diverged=sum(bool(value["diverged"]) for value in values))


# --- average: the exact mean of B_i A_i (A4, section 3.4) ---


def average(plan: Plan, state: State) -> list[Task]:
    """One task over all adapters."""
    if not state.adapters:
        return []
    model = plan.models["generator"]
    params = {"rank": plan.spec.fuse.rank}
    return [Task(stage="average", kind="trainer.average", items=state.adapters, params=params, model=model.version, model_path=model.path)]


def absorb_averaged(_: Plan, state: State, done: list[Manifest]) -> State:
    """Note the mean, its rank, and what compressing it lost."""
    return replace(state, average=done[0].files["adapter.safetensors"], compression=done[0].values) if done else state


# --- fuse: theta + alpha * phi (A4) ---


def fuse(plan: Plan, state: State) -> list[Task]:
    """The product of the iteration as one LoRA file with alpha in it, loaded back and compared."""
    if not state.average:
        return []
    model = plan.models["generator"]
    params = {"alphas": [plan.spec.fuse.alpha]}
    return [Task(stage="fuse", kind="trainer.fuse", items=(state.average,), params=params, model=model.version, model_path=model.path)]


def absorb_fused(_: Plan, state: State, done: list[Manifest]) -> State:
    """Note the LoRA."""
    return replace(state, fused=done[0].files["adapter.safetensors"]) if done else state


# --- evaluate: held-out prompts, base against tuned, the same seeds (A5) ---


def repaint(plan: Plan, state: State) -> list[Task]:
    """Every held-out prompt by the base and by the tuned model."""
    variants = ("", state.fused) if state.fused else ("",)
    return [
        _paint(plan, "evaluate", [(row.prompt, row.seed, ()) for row in chunk], adapter)
        for adapter in variants
        for chunk in _chunks(state.heldout, plan.spec.batch)
    ]


def absorb_repainted(_: Plan, state: State, done: list[Manifest]) -> State:
    """Note both pictures."""
    pictures = [painted.picture for manifest in done for painted in _painted(manifest)]
    count = len(state.heldout)
    tuned = pictures[count:] or [""] * count
    return replace(
        state, heldout=tuple(replace(row, base=base, tuned=t) for row, base, t in zip(state.heldout, pictures[:count], tuned, strict=True))
    )


def compare(plan: Plan, state: State) -> list[Task]:
    """Score both pictures of every held-out prompt."""
    chunks = _chunks(state.heldout, plan.spec.batch)
    tasks = [_score(plan, "compare", [(row.prompt, row.base) for row in chunk]) for chunk in chunks]
    if state.fused:
        tasks += [_score(plan, "compare", [(row.prompt, row.tuned) for row in chunk]) for chunk in chunks]
    return tasks


def absorb_compared(_: Plan, state: State, done: list[Manifest]) -> State:
    """Note both scores."""
    scores = [value for manifest in done for value in manifest.values]
    count = len(state.heldout)
    tuned = scores[count:] or [None] * count
    rows = zip(state.heldout, scores[:count], tuned, strict=True)
    return replace(state, heldout=tuple(replace(row, scores_base=base, scores_tuned=t) for row, base, t in rows))


def nothing(_: Plan, __: State) -> list[Task]:
    """A barrier that only decides."""
    return []


STAGES: tuple[Each | Gather, ...] = (
    Each("generate", "generator", generate, absorb_generated),
    Each("ground", "grounding", ground, absorb_grounded),
    Each("regenerate", "generator", regenerate, absorb_regenerated),
    Each("score", "scoring", score, absorb_scored),
    Gather("filter", nothing, judge),
    Gather("train", train, absorb_trained),
    Gather("average", average, absorb_averaged),
    Gather("fuse", fuse, absorb_fused),
    Gather("evaluate", repaint, absorb_repainted),
    Gather("compare", compare, absorb_compared),
)


def _paint(plan: Plan, stage: str, rows: Sequence[tuple[str, int, tuple[Region, ...]]], adapter: str = "") -> Task:
    model, paint = plan.models["generator"], plan.spec.paint
    items = tuple(
        {"prompt": prompt, "seed": seed, "regions": [{"prompt": region.prompt, "box": list(region.box)} for region in regions]}
        for prompt, seed, regions in rows
    )
    params = paint.model_dump() | {"adapter": adapter}
    return Task(stage=stage, kind="generator.paint", items=items, params=params, model=model.version, model_path=model.path)


def _painted(done: Manifest) -> list[Painted]:
    return [Painted(done.files[f"{index}.png"], done.files[f"{index}.safetensors"]) for index in range(len(done.items))]


def _score(plan: Plan, stage: str, pictures: Sequence[tuple[str, str]]) -> Task:
    model = plan.models["scorers"]
    items = tuple({"prompt": prompt, "picture": picture} for prompt, picture in pictures)
    params = {"metrics": list(plan.spec.score.metrics)}
    return Task(stage=stage, kind="scoring.score", items=items, params=params, model=model.version, model_path=model.path)


def _of(painted: Painted | None) -> Painted:
    assert painted is not None, "a stage ran before the one it needs"
    return painted


def _chunks(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
