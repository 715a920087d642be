"""The page's pictures: pairs with their advice, and held-out prompts painted by every model of the run."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from itertools import islice
from typing import Any

from PIL import Image as Pillow

from orchestrator.recipes.artaug.state import KEPT, SET_ASIDE, ArtAugPlan, Iteration, Sample, State
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import decode_image

# The maximum numbers of pictures on the page; all of them are in the artifact store.
MOST_PAIRS, MOST_REFUSED, MOST_PROMPTS = 12, 4, 8
# Pictures with a longer side are scaled down to it, as JPEG.
LONGEST = 384


def pairs(iteration: Iteration, artifacts: ArtifactStore) -> list[dict[str, Any]]:
    """The pairs of an iteration that are shown: trained ones first, then other kept ones, then rejected ones of every verdict."""
    trained = iteration.attempt.pairs if iteration.attempt else ()
    seeds = {sample.seed for sample in trained}
    others = islice((sample for sample in iteration.samples if sample.verdict == KEPT and sample.seed not in seeds), MOST_PAIRS)
    refused = _one_of_each(sample for sample in iteration.samples if sample.after and sample.verdict not in (KEPT, SET_ASIDE))
    kept = [*trained, *others][: MOST_PAIRS - min(MOST_REFUSED, len(refused))]
    return [
        *(_pair(sample, "trained" if sample in trained else KEPT, artifacts) for sample in kept),
        *(_pair(sample, sample.verdict, artifacts) for sample in refused[:MOST_REFUSED]),
    ]


def _one_of_each(samples: Iterable[Sample]) -> list[Sample]:
    """The first samples of every verdict, taken in turn."""
    seen: dict[str, int] = {}
    ranked = []
    for index, sample in enumerate(samples):
        rank = seen.setdefault(sample.verdict, 0)
        if rank < MOST_REFUSED:
            ranked.append((rank, index, sample))
            seen[sample.verdict] += 1
    return [sample for _, _, sample in sorted(ranked, key=lambda row: row[:2])]


def _pair(sample: Sample, verdict: str, artifacts: ArtifactStore) -> dict[str, Any]:
    assert sample.before is not None and sample.after is not None
    before, after = sample.scores_before or {}, sample.scores_after or {}
    return {
        "prompt": sample.prompt,
        "asked": sample.asked if sample.asked != sample.prompt else "",
        "verdict": verdict,
        "reason": sample.reason,
        "before": _shown(sample.before.picture, artifacts),
        "after": _shown(sample.after.picture, artifacts),
        "scores": [(name, before[name], after[name]) for name in ("aesthetic", "clip") if name in before and name in after],
        "regions": [
            {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "prompt": region.prompt}
            for region in sample.regions
            for x1, y1, x2, y2 in [region.box]
        ],
    }


def sample_grid(plan: ArtAugPlan, state: State, artifacts: ArtifactStore) -> dict[str, Any]:
    """The first held-out prompts, each from its seed, by the base model, by every fused iteration, and at the ceiling."""
    columns = [("base", state.base)]
    columns += [(f"iteration {i.index}", i.attempt.heldout) for i in state.fused if i.attempt]
    columns += [("base, asked for beauty", state.ceiling)]
    shown = [(name, heldout.pictures) for name, heldout in columns if heldout is not None]
    seed = plan.spec.evaluate.seed
    rows = [
        {"prompt": prompt, "seed": seed + index, "pictures": [_shown(pictures[index], artifacts) for _, pictures in shown]}
        for index, prompt in enumerate(plan.inputs["heldout"][:MOST_PROMPTS])
    ]
    return {"columns": [name for name, _ in shown], "rows": rows if shown else []}


def _shown(digest: str, artifacts: ArtifactStore) -> str:
    """The picture as a data URI."""
    data, kind = artifacts.get(digest), "png"
    image = decode_image(data)
    if max(image.shape[:2]) > LONGEST:
        picture, buffer = Pillow.fromarray(image), io.BytesIO()
        picture.thumbnail((LONGEST, LONGEST), Pillow.Resampling.LANCZOS)
        picture.save(buffer, format="JPEG", quality=88)
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
