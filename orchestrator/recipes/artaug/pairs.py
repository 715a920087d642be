"""From prompts to pairs that somebody looked at (sections 3.1 and 3.2): refine, paint, ground, paint again, score, review."""

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

# --- refine: ambiguous prompts made definite (section 4.1.1) ---


def refine(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """Ask the VLM for a definite wording of every prompt."""
    if not plan.spec.ground.refine:
        return None
    return asking(plan, "refine", "refine", tuple({"prompt": sample.asked} for sample in samples))


def absorb_refined(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """From here on, the prompt is the refined one."""
    return tuple(replace(sample, prompt=value["prompt"]) for sample, value in zip(samples, done.values, strict=True))


# --- generate: X from P and s (A1, step 1) ---


def generate(plan: ArtAugPlan, state: State, samples: tuple[Sample, ...]) -> Task:
    """Paint every sample without advice, with the model so far."""
    return paint(plan, "generate", [(sample.prompt, sample.seed, ()) for sample in samples], state.adapter)


def absorb_generated(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note X."""
    return tuple(replace(sample, before=picture) for sample, picture in zip(samples, painted(done), strict=True))


# --- ground: u(X) = {(P_i, M_i)} (A1, step 2) ---


def ground(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task:
    """Ask the VLM where which words would help."""
    items = tuple({"prompt": sample.prompt, "picture": there(sample.before).picture} for sample in samples)
    return asking(plan, "ground", "ground", items, strategy=plan.spec.ground.strategy)


def absorb_grounded(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note the regions, or why the answer was of no use."""
    return tuple(
        replace(sample, regions=regions_of(value), rejected=value["rejected"]) for sample, value in zip(samples, done.values, strict=True)
    )


# --- regenerate: X' from the same P and s under the advice (A1, step 3) ---


def regenerate(plan: ArtAugPlan, state: State, samples: tuple[Sample, ...]) -> Task | None:
    """Paint the samples that have advice again."""
    advised = [(sample.prompt, sample.seed, sample.regions) for sample in samples if sample.regions]
    return paint(plan, "regenerate", advised, state.adapter) if advised else None


def absorb_regenerated(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note X'."""
    pictures = iter(painted(done))
    return tuple(replace(sample, after=next(pictures)) if sample.regions else sample for sample in samples)


# --- score: both pictures of a pair, and what the rules say of them (A2) ---


def score(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """Score X and X' of the samples that have both."""
    pictures = [(sample.prompt, picture.picture) for sample, before, after in _pairs(samples) for picture in (before, after)]
    return scored(plan, "score", pictures, plan.spec.score.metrics) if pictures else None


def absorb_scored(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note both scores."""
    scores = iter(done.values)
    return tuple(replace(sample, scores_before=next(scores), scores_after=next(scores)) if sample.after else sample for sample in samples)


def verdict(sample: Sample, rules: Filter) -> str:
    """The first rule that speaks against a pair, or ``kept``.

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


# --- similarity: how like X the new picture is (Figure 4) ---


def similarity(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """The cosine of CLIP's image features of X and X'."""
    items = tuple({"a": before.picture, "b": after.picture} for _, before, after in _pairs(samples))
    return scoring(plan, "similarity", "similarity", items, {}) if items else None


def absorb_similarity(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note the cosine."""
    values = iter(done.values)
    return tuple(replace(sample, cosine=next(values)) if sample.after else sample for sample in samples)


# --- vlm_review, human_review: another look at what the rules let through (A2) ---


def vlm_review(plan: ArtAugPlan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """Show the VLM both pictures, in both orders."""
    if "vlm" not in plan.spec.filter.review:
        return None
    items = _shown([sample for sample in samples if verdict(sample, plan.spec.filter) == KEPT])
    return asking(plan, "vlm_review", "compare", items) if items else None


def absorb_vlm_review(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """A pair whose X' is not clearly the more beautiful one goes."""
    said = {(item["a"], item["b"]): value for item, value in zip(done.items, done.values, strict=True)}
    reviewed = []
    for sample in samples:
        value = said.get(_names(sample))
        if value is not None and value["choice"] != "B":
            sample = replace(sample, verdict="vlm_review", reason=value["reason"] or value["choice"])
        reviewed.append(sample)
    return tuple(reviewed)


def human_review(plan: ArtAugPlan, state: State) -> list[Task]:
    """A task for every pair that a person has to look at; the person's answer is its manifest."""
    if "human" not in plan.spec.filter.review:
        return []
    waiting = [sample for sample in state.samples if not sample.verdict and verdict(sample, plan.spec.filter) == KEPT]
    return [question(plan, "human_review", item) for item in _shown(waiting)]


def absorb_human_review(_: ArtAugPlan, state: State, done: list[Manifest]) -> State:
    """What a person refused goes."""
    said = {(item["a"], item["b"]): value for m in done for item, value in zip(m.items, m.values, strict=True)}

    def heard(sample: Sample) -> Sample:
        value = said.get(_names(sample))
        if value is None or value["accepted"]:
            return sample
        return replace(sample, verdict="human_review", reason=value["reason"])

    return state.with_samples(to_row_file(heard(sample) for sample in state.samples)) if said else state


def questions(state: State, tasks: Sequence[Task]) -> list[Question]:
    """What a person is asked for each of these tasks."""
    asked = {_names(sample): sample for sample in state.samples if sample.before and sample.after}
    found = [asked[task.items[0]["a"], task.items[0]["b"]] for task in tasks]
    return [
        Question(task.id, "", 0, sample.prompt, sample.asked, sample.seed, shown(sample)) for task, sample in zip(tasks, found, strict=True)
    ]


# --- filter: the verdict on every pair; the best of the kept ones are trained ---


def select(plan: ArtAugPlan, state: State, _: list[Manifest]) -> State:
    """The rules' verdicts beside the reviewers'; too few pairs end the run."""
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
    """Its samples are no pairs, for this reason."""
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
    """A picture that an earlier stage painted."""
    assert picture is not None, "a stage ran before the one it needs"
    return picture
