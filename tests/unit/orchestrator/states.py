"""Finished runs built by hand, small enough to reckon with on paper; shared by the tests of the summary, the report and the progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.recipes.artaug.spec import ArtAugSpec, Fuse, HeldOutPrompts, Train
from orchestrator.recipes.artaug.state import KEPT, ArtAugPlan, Candidate, HeldOutResult, Iteration, Sample, State, Training, TuningAttempt
from orchestrator.recipes.models import Model
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.spec import Prompts
from orchestrator.recipes.tasks import Painted
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png
from sfumato.types import Region

SCORES = {"clip": 80.0, "aesthetic": 2.0, "pickscore": 0.0, "mps": 0.0, "nudenet": 0.0}
PROMPTS = ("a house by day", "a lake at dusk", "the sun", "a tree by night")
HELD = ("a red house under a sky", "birds")


def scores(**changed: float) -> dict[str, float]:
    """One picture's."""
    return SCORES | changed


def plan(**changed: object) -> ArtAugPlan:
    """Four prompts, two held out; φ₁ and φ₂ have two steps each."""
    spec = ArtAugSpec(
        name="small",
        prompts=Prompts(file=Path("p.txt"), count=4, seed=10),
        tune=Prompts(file=Path("t.txt"), count=1, seed=70),
        evaluate=HeldOutPrompts(file=Path("somewhere/held.txt"), count=2, seed=90),
        fuse=Fuse(alpha=(1.0, 2.0)),
        train=Train(steps_before=2, steps_after=2),
    )
    models = {name: Model(f"{name}-version", "") for name in ("generator", "understanding", "scorers")}
    sets = {"train": PROMPTS, "tune": ("a boat",), "heldout": HELD, "ceiling": ("a shining red house", "golden birds")}
    return Plan(spec.model_copy(update=changed), sets, models)


def picture(store: ArtifactStore | None, shade: int, side: int = 16) -> str:
    """A grey picture in the store; only a name where there is none."""
    if store is None:
        return f"picture {shade}"
    return store.put(encode_png(np.full((side, side, 3), shade, np.uint8)))


def sample(index: int, verdict: str, gain: float = 1.0, store: ArtifactStore | None = None) -> Sample:
    """A prompt with both pictures, or without X' if it has no advice."""
    before = Painted(picture(store, 10 * index), "")
    made = Sample(PROMPTS[index], PROMPTS[index] + ", refined", 10 + index, before, verdict=verdict)
    if verdict == "no_advice":
        return replace(made, rejected="no JSON")
    return replace(
        made,
        regions=(Region("a glowing <house>", (1, 2, 9, 12)), Region("a shining sky", (0, 0, 16, 8))),
        after=Painted(picture(store, 100 + 10 * index), ""),
        scores_before=scores(aesthetic=2.0, clip=80.0),
        scores_after=scores(aesthetic=2.0 + gain, clip=81.0),
        cosine=0.75,
    )


def held(shade: int, rows: Sequence[Mapping[str, float]], store: ArtifactStore | None = None) -> HeldOutResult:
    """A model's held-out pictures and scores."""
    return HeldOutResult(tuple(picture(store, shade + index) for index in range(len(rows))), tuple(rows))


def attempt(objective: str, pairs: Sequence[Sample], heldout: HeldOutResult | None, alpha: float = 2.0) -> TuningAttempt:
    """A training that went well, but for its last pair, which diverged."""
    good = Training((0.4, 0.3, 0.5, 0.2), 8, "", {})
    bad = Training((), 0, "the loss is not finite at step 3", {})
    return TuningAttempt(
        objective,
        tuple(pairs),
        "",
        (),
        adapters=("adapter",),
        trainings=(good, bad),
        average="mean",
        compression={"rank": 8, "error": 0.01, "norm": 1.5},
        candidates=(Candidate(1.0, "one", ("t",), 2.5, 80.0), Candidate(2.0, "two", ("t",), 3.0, 79.9)),
        standing=Candidate(0.0, "", ("t",), 2.0, 80.0),
        alpha=alpha,
        stacked="two" if alpha else "",
        lora="lora" if alpha else "",
        heldout=heldout,
    )


def finished(store: ArtifactStore | None = None, iterations: int = 2) -> State:
    """Two iterations that were fused, a third that had too few pairs, and the comparison."""
    samples = (sample(0, KEPT, 3.0, store), sample(1, KEPT, 1.0, store), sample(2, "clip", 2.0, store), sample(3, "no_advice", 0.0, store))
    done = []
    for index in range(1, iterations + 1):
        rows = [scores(aesthetic=2.0 + index, clip=80.5, pickscore=float(index), mps=0.5, nudenet=0.0) for _ in HELD]
        done.append(Iteration(index, samples, attempt("differential", samples[:2], held(20 * index, rows, store))))
    few = tuple(replace(one, verdict="aesthetic") if one.after else one for one in samples)
    done.append(Iteration(iterations + 1, few, None))
    naive = [scores(aesthetic=2.5, clip=79.0, pickscore=0.5, mps=0.25) for _ in HELD]
    return State(
        samples=tuple(Sample(prompt, prompt, 10 + index) for index, prompt in enumerate(PROMPTS)),
        iterations=tuple(done),
        base=held(0, [scores(aesthetic=2.0), scores(aesthetic=3.0, nudenet=1.0)], store),
        ceiling=held(200, [scores(aesthetic=9.0), scores(aesthetic=9.0)], store),
        naive=attempt("naive", samples[:2], held(150, naive, store)),
        stop_reason="too few pairs survive",
    )


def at_once(store: ArtifactStore | None = None) -> State:
    """A run that had too few pairs in its first iteration: nothing trained, only the base model measured."""
    whole = finished(store)
    first = replace(whole.iterations[-1], index=1)
    return replace(whole, iterations=(first,), ceiling=None, naive=None)


def without_advice(store: ArtifactStore | None = None) -> State:
    """A run whose VLM never said anything of use: no sample has both pictures."""
    samples = tuple(sample(index, "no_advice", 0.0, store) for index in range(len(PROMPTS)))
    return replace(at_once(store), iterations=(Iteration(1, samples, None),))


def no_gain(store: ArtifactStore | None = None) -> State:
    """A run whose only training was of no use at any strength."""
    whole = finished(store, iterations=1)
    first = whole.iterations[0]
    kept = [one for one in first.samples if one.verdict == KEPT]
    return replace(
        whole,
        iterations=(replace(first, attempt=attempt("differential", kept, None, alpha=0.0)),),
        naive=None,
        stop_reason="no alpha improves the tuning prompts",
    )


JUDGED = {
    "base": {"finish": 0.1, "finish_objects": 0.2, "finish_sky": 0.0, "object_presence": 1.0},
    "ceiling": {"finish": 0.9, "finish_objects": 1.0, "finish_sky": 0.8, "object_presence": 0.9, "composition_iou": 0.5},
    "iteration 1": {"finish": 0.3, "finish_objects": 0.4, "finish_sky": float("nan"), "object_presence": 1.0, "composition_iou": 0.7},
    "iteration 2": {"finish": 0.5, "finish_objects": 0.8, "finish_sky": 0.2, "object_presence": 1.0, "composition_iou": 0.7},
    "naive": {"finish": 0.2, "finish_objects": 0.3, "finish_sky": 0.1, "object_presence": 0.5, "composition_iou": float("nan")},
    "pairs": {"composition_iou": 0.66, "composition_iou_detector": 0.7, "matched": 3},
}
