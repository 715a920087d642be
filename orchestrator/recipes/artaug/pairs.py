"""From prompts to pairs that somebody looked at (sections 3.1 and 3.2): refine, paint, ground, paint again, score, review."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from orchestrator.recipes.artaug.state import KEPT, SET_ASIDE, Painted, Plan, Sample, State
from orchestrator.recipes.artaug.tasks import asking, chunks, paint, painted, scoring
from orchestrator.recipes.artaug.tasks import score as scored
from orchestrator.spec import Filter
from orchestrator.spool import spooled
from sfumato.runtime.tasks import Json, Manifest, Task
from sfumato.types import Region

# --- refine: ambiguous prompts made definite (section 4.1.1) ---


def refine(plan: Plan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """Ask the VLM for a definite wording of every prompt."""
    if not plan.spec.ground.refine:
        return None
    return asking(plan, "refine", "refine", tuple({"prompt": sample.asked} for sample in samples))


def absorb_refined(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """From here on, the prompt is the refined one."""
    return tuple(replace(sample, prompt=value["prompt"]) for sample, value in zip(samples, done.values, strict=True))


# --- generate: X from P and s (A1, step 1) ---


def generate(plan: Plan, state: State, samples: tuple[Sample, ...]) -> Task:
    """Paint every sample without advice, with the model so far."""
    return paint(plan, "generate", [(sample.prompt, sample.seed, ()) for sample in samples], state.adapter)


def absorb_generated(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note X."""
    return tuple(replace(sample, before=picture) for sample, picture in zip(samples, painted(done), strict=True))


# --- ground: u(X) = {(P_i, M_i)} (A1, step 2) ---


def ground(plan: Plan, _: State, samples: tuple[Sample, ...]) -> Task:
    """Ask the VLM where which words would help."""
    items = tuple({"prompt": sample.prompt, "picture": _of(sample.before).picture} for sample in samples)
    return asking(plan, "ground", "ground", items, strategy=plan.spec.ground.strategy)


def absorb_grounded(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note the regions, or why the answer was of no use."""
    return tuple(
        replace(sample, regions=_regions(value), rejected=value["rejected"]) for sample, value in zip(samples, done.values, strict=True)
    )


# --- regenerate: X' from the same P and s under the advice (A1, step 3) ---


def regenerate(plan: Plan, state: State, samples: tuple[Sample, ...]) -> Task | None:
    """Paint the samples that have advice again."""
    advised = [(sample.prompt, sample.seed, sample.regions) for sample in samples if sample.regions]
    return paint(plan, "regenerate", advised, state.adapter) if advised else None


def absorb_regenerated(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note X'."""
    pictures = iter(painted(done))
    return tuple(replace(sample, after=next(pictures)) if sample.regions else sample for sample in samples)


# --- score: both pictures of a pair, and what the rules say of them (A2) ---


def score(plan: Plan, _: State, samples: tuple[Sample, ...]) -> Task | None:
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


# --- resemble: how like X the new picture is (Figure 4) ---


def resemble(plan: Plan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """The cosine of CLIP's image features of X and X'."""
    items = tuple({"a": before.picture, "b": after.picture} for _, before, after in _pairs(samples))
    return scoring(plan, "resemble", "similarity", items, {}) if items else None


def absorb_resemblance(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """Note the cosine."""
    values = iter(done.values)
    return tuple(replace(sample, cosine=next(values)) if sample.after else sample for sample in samples)


# --- review: somebody looks at what the rules let through (A2) ---


def review(plan: Plan, _: State, samples: tuple[Sample, ...]) -> Task | None:
    """Show the VLM both pictures, in both orders."""
    if "vlm" not in plan.spec.filter.review:
        return None
    items = _shown([sample for sample in samples if verdict(sample, plan.spec.filter) == KEPT])
    return asking(plan, "review", "compare", items) if items else None


def absorb_review(samples: tuple[Sample, ...], done: Manifest) -> tuple[Sample, ...]:
    """A pair whose X' is not clearly the more beautiful one goes."""
    said = {(item["a"], item["b"]): value for item, value in zip(done.items, done.values, strict=True)}
    reviewed = []
    for sample in samples:
        value = said.get(_names(sample))
        if value is not None and value["choice"] != "B":
            sample = replace(sample, verdict="vlm_review", reason=value["reason"] or value["choice"])
        reviewed.append(sample)
    return tuple(reviewed)


def show(plan: Plan, state: State) -> list[Task]:
    """A task for every pair that a person has to look at; the person's answer is its manifest."""
    if "human" not in plan.spec.filter.review:
        return []
    waiting = [sample for sample in state.samples if not sample.verdict and verdict(sample, plan.spec.filter) == KEPT]
    generator = plan.models["generator"]
    return [
        Task(stage="show", kind="review.pair", items=_shown(rows), params={}, model=generator.version, model_reference=generator.reference)
        for rows in chunks(waiting, 1)
    ]


def absorb_shown(_: Plan, state: State, done: list[Manifest]) -> State:
    """What a person refused goes."""
    said = {(item["a"], item["b"]): value for m in done for item, value in zip(m.items, m.values, strict=True)}

    def heard(sample: Sample) -> Sample:
        value = said.get(_names(sample))
        if value is None or value["accepted"]:
            return sample
        return replace(sample, verdict="human_review", reason=value["reason"])

    return state.with_samples(spooled(heard(sample) for sample in state.samples)) if said else state


# --- set aside: a micro-batch that nobody could do, after several tries ---


def without(samples: tuple[Sample, ...], reason: str) -> tuple[Sample, ...]:
    """Its samples are no pairs, for this reason."""
    return tuple(replace(sample, verdict=SET_ASIDE, reason=reason) for sample in samples)


# --- look again: where the VLM finds the same things in X', after the run; for the report only ---


MOST_LOOKED = 512
"""Pairs in which the VLM looks again, the first ones."""


def look_again(plan: Plan, state: State) -> list[Task]:
    """Ask about X' of the first iteration's kept pairs as was asked about X."""
    items = [{"prompt": sample.prompt, "picture": _of(sample.after).picture} for sample in _kept_first(state)]
    return [asking(plan, "compare", "ground", tuple(rows), strategy=plan.spec.ground.strategy) for rows in chunks(items, plan.spec.batch)]


def absorb_look(state: State, done: list[Manifest]) -> State:
    """Note what the VLM found in X'."""
    found = [_regions(value) for manifest in done for value in manifest.values]
    pairs = zip(_kept_first(state), found, strict=True)
    return replace(state, looked=tuple(replace(sample, regions_after=regions) for sample, regions in pairs))


def _kept_first(state: State) -> list[Sample]:
    samples = state.iterations[0].samples if state.iterations else ()
    return list(islice((sample for sample in samples if sample.verdict == KEPT), MOST_LOOKED))


def _shown(samples: Sequence[Sample]) -> tuple[Json, ...]:
    return tuple({"prompt": sample.prompt, "a": before.picture, "b": after.picture} for sample, before, after in _pairs(samples))


def _pairs(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Painted, Painted]]:
    for sample in samples:
        if sample.before is not None and sample.after is not None:
            yield sample, sample.before, sample.after


def _names(sample: Sample) -> tuple[str, str]:
    return (sample.before.picture if sample.before else "", sample.after.picture if sample.after else "")


def _regions(value: Json) -> tuple[Region, ...]:
    return tuple(Region(region["prompt"], tuple(region["box"])) for region in value["regions"])


def _of(picture: Painted | None) -> Painted:
    assert picture is not None, "a stage ran before the one it needs"
    return picture
