"""From prompts to reviewed pairs (sections 3.1 and 3.2): refine, generate, ground, regenerate, score, review."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import nsmallest

from orchestrator.engine.rows import to_row_file
from orchestrator.recipes.artaug.spec import Filter
from orchestrator.recipes.artaug.state import KEPT, SET_ASIDE, TOO_FEW, ArtAugPlan, Sample, State, TuningAttempt, shown
from orchestrator.recipes.tasks import Painted, asking, paint, painted, question, scoring
from orchestrator.recipes.tasks import score as scored
from sfumato.runs.records import Question
from sfumato.runtime.tasks import Json, Manifest, Task
from sfumato.types import Region

# --- refine: ambiguous prompts are made specific (section 4.1.1) ---


def refine(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """Ask the VLM for a specific wording of every prompt."""
    if not plan.spec.ground.refine:
        return None
    return asking(plan, "refine", "refine", tuple({"prompt": sample.asked} for sample in samples))


def absorb_refined(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Store the refined prompts."""
    return tuple(replace(sample, prompt=value["prompt"]) for sample, value in zip(samples, done.values, strict=True))


# --- generate: X from P and s (A1, step 1) ---


def generate(plan: ArtAugPlan, state: State, samples: tuple[Sample, ...]) -> Task:
    """Generate every sample without advice, with the current model."""
    return paint(plan, "generate", [(sample.prompt, sample.seed, ()) for sample in samples], state.adapter)


def absorb_generated(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Store X."""
    return tuple(replace(sample, before=picture) for sample, picture in zip(samples, painted(done), strict=True))


# --- ground: u(X) = {(P_i, M_i)} (A1, step 2) ---


def ground(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task:
    """Ask the VLM for improvements by region."""
    items = tuple({"prompt": sample.prompt, "picture": there(sample.before).picture} for sample in samples)
    return asking(plan, "ground", "ground", items, strategy=plan.spec.ground.strategy)


def absorb_grounded(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Store the regions, or why the answer was rejected."""
    return tuple(
        replace(sample, regions=regions_of(value), rejected=value["rejected"]) for sample, value in zip(samples, done.values, strict=True)
    )


# --- regenerate: X' from the same P and s under the advice (A1, step 3) ---


def regenerate(plan: ArtAugPlan, state: State, samples: tuple[Sample, ...]) -> Task | None:
    """Regenerate the samples that have advice."""
    advised = [(sample.prompt, sample.seed, sample.regions) for sample in samples if sample.regions]
    return paint(plan, "regenerate", advised, state.adapter) if advised else None


def absorb_regenerated(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Store X'."""
    pictures = iter(painted(done))
    return tuple(replace(sample, after=next(pictures)) if sample.regions else sample for sample in samples)


# --- score: both pictures of a pair, and the filter's rules (A2) ---


def score(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """Score X and X' of the samples that have both."""
    pictures = [(sample.prompt, picture.picture) for sample, before, after in _pairs(samples) for picture in (before, after)]
    return scored(plan, "score", pictures, plan.spec.score.metrics) if pictures else None


def absorb_scored(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Store both scores."""
    scores = iter(done.values)
    return tuple(replace(sample, scores_before=next(scores), scores_after=next(scores)) if sample.after else sample for sample in samples)


def verdict(sample: Sample, rules: Filter) -> str:
    """The first rule that rejects a pair, or ``kept``.

    aesthetic(X') > aesthetic(X), by ``min_gain`` at least; CLIP(P, X') >= CLIP(P, X); the safety check passes on both.
    """
    before, after = sample.scores_before, sample.scores_after
    if before is None or after is None:
        return "no_advice"
    if not (after["aesthetic"] > before["aesthetic"] and sample.gain >= rules.min_gain):
        return "aesthetic"
    if not after["clip"] >= before["clip"]:
        return "clip"
    if not (before.get("nudenet", 0.0) == after.get("nudenet", 0.0) == 0.0):
        return "nudenet"
    return KEPT


# --- similarity: the cosine of X and X' (Figure 4) ---


def similarity(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """The cosine of CLIP's image features of X and X'."""
    items = tuple({"a": before.picture, "b": after.picture} for _, before, after in _pairs(samples))
    return scoring(plan, "similarity", "similarity", items, {}) if items else None


def absorb_similarity(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Store the cosine."""
    values = iter(done.values)
    return tuple(replace(sample, cosine=next(values)) if sample.after else sample for sample in samples)


# --- vlm_review, human_review: reviews of the pairs that pass the rules (A2) ---


def vlm_review(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """Show the VLM both pictures, in both orders."""
    if "vlm" not in plan.spec.filter.review:
        return None
    items = _shown([sample for sample in samples if verdict(sample, plan.spec.filter) == KEPT])
    return asking(plan, "vlm_review", "compare", items) if items else None


def absorb_vlm_review(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Reject the pairs whose X' is not preferred in both orders."""
    answers = {(item["a"], item["b"]): value for item, value in zip(done.items, done.values, strict=True)}
    reviewed = []
    for sample in samples:
        value = answers.get(_names(sample))
        if value is not None and value["choice"] != "B":
            sample = replace(sample, verdict="vlm_review", reason=value["reason"] or value["choice"])
        reviewed.append(sample)
    return tuple(reviewed)


def human_review(plan: ArtAugPlan, state: State) -> list[Task]:
    """A task for every pair that a person must review; its manifest is the answer."""
    if "human" not in plan.spec.filter.review:
        return []
    waiting = [sample for sample in state.samples if not sample.verdict and verdict(sample, plan.spec.filter) == KEPT]
    return [question(plan, "human_review", item) for item in _shown(waiting)]


def absorb_human_review(_: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """Reject the pairs that a person rejected."""
    answers = {(item["a"], item["b"]): value for m in done for item, value in zip(m.items, m.values, strict=True)}

    def reviewed(sample: Sample) -> Sample:
        value = answers.get(_names(sample))
        if value is None or value["accepted"]:
            return sample
        return replace(sample, verdict="human_review", reason=value["reason"])

    return state.with_samples(to_row_file(reviewed(sample) for sample in state.samples)) if answers else state


def questions(state: State, tasks: Sequence[Task]) -> list[Question]:
    """The questions of these tasks to a person."""
    asked = {_names(sample): sample for sample in state.samples if sample.before and sample.after}
    found = [asked[task.items[0]["a"], task.items[0]["b"]] for task in tasks]
    return [
        Question(task.id, "", 0, sample.prompt, sample.asked, sample.seed, shown(sample)) for task, sample in zip(tasks, found, strict=True)
    ]


# --- filter: the verdict on every pair; the best kept ones are trained ---


def select(plan: ArtAugPlan, state: State, _: list[Manifest]) -> State:
    """Combine the verdicts of the rules and of the reviews; too few kept pairs end the run."""
    rules = plan.spec.filter
    samples = to_row_file(sample if sample.verdict else replace(sample, verdict=verdict(sample, rules)) for sample in state.samples)
    state = state.with_samples(samples)
    if sum(sample.verdict == KEPT for sample in samples) < plan.spec.stop.min_pairs:
        return replace(state, stop_reason=TOO_FEW)
    kept = (sample for sample in samples if sample.verdict == KEPT)
    best = nsmallest(plan.spec.train.pairs, kept, key=lambda sample: (-sample.gain, sample.seed))
    earlier = tuple((attempt.average, attempt.alpha) for attempt in (iteration.attempt for iteration in state.fused) if attempt)
    return replace(state, attempt=TuningAttempt("differential", tuple(best), state.adapter, earlier))


# --- dead letters: a micro-batch whose task failed at every try ---


def on_dead_letter(samples: tuple[Sample, ...], reason: str) -> tuple[Sample, ...]:
    """The samples of the task, rejected with the reason."""
    return tuple(replace(sample, verdict=SET_ASIDE, reason=reason) for sample in samples)


def _shown(samples: Sequence[Sample]) -> tuple[Json, ...]:
    return tuple({"prompt": sample.prompt, "a": before.picture, "b": after.picture} for sample, before, after in _pairs(samples))


def _pairs(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Painted, Painted]]:
    for sample in samples:
        if sample.before is not None and sample.after is not None:
            yield sample, sample.before, sample.after


def _names(sample: Sample) -> tuple[str, str]:
    return (sample.before.picture if sample.before else "", sample.after.picture if sample.after else "")


def regions_of(value: Json) -> tuple[Region, ...]:
    """The regions of a VLM's answer."""
    return tuple(Region(region["prompt"], tuple(region["box"])) for region in value["regions"])


def there(picture: Painted | None) -> Painted:
    """The picture of an earlier stage, which must exist."""
    assert picture is not None, "a stage ran before the one it needs"
    return picture
