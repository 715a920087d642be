"""The task that asks the independent judge, after the last stage of a run on Vista, for its report.

The one module of the services that may import ``sfumato.vista.evaluation``: it must run where pictures and models are, like any other
task; nothing a run decides comes after it, and no other task can see what it says.
"""

from __future__ import annotations

import math

from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import decode_image
from sfumato.runtime.models.references import checked_scorers
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Json, Output, Task
from sfumato.types import Image, Region
from sfumato.vista.evaluation.run import judge_pairs, judge_run


def judge(task: Task, artifacts: ArtifactStore) -> Output:
    """What the judge says of every set of pictures: see `judge_run`, and under "pairs" `judge_pairs`; None where it is not a number.

    Items: ``{"set", "pictures"}``. Params: ``prompts``, the pictures' own, in their order; ``pairs`` of ``{"before", "after",
    "regions", "regions_after"}``, which may be none.
    """
    root = checked_scorers(task.model_reference, {}, task.model, Settings())

    def pictures(names: list[str]) -> list[Image]:
        return [decode_image(artifacts.get(name)) for name in names]

    marks = judge_run({item["set"]: pictures(item["pictures"]) for item in task.items}, task.params["prompts"], root)
    pairs = task.params["pairs"]
    if pairs:
        before, after = (pictures([pair[side] for pair in pairs]) for side in ("before", "after"))
        advice = [(_regions(pair["regions"]), _regions(pair["regions_after"])) for pair in pairs]
        marks["pairs"] = judge_pairs(before, after, advice, root)
    return Output({name: {key: value if math.isfinite(value) else None for key, value in row.items()} for name, row in marks.items()})


def _regions(values: list[Json]) -> list[Region]:
    return [Region(value["prompt"], tuple(value["box"])) for value in values]
