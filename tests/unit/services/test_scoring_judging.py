"""The judge's task: the same words as the judge's own, in numbers that JSON has."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.scoring.tasks import HANDLERS
from sfumato.errors import MissingWeights
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png
from sfumato.runtime.models.references import JUDGE, scorers_version
from sfumato.runtime.settings import Settings
from sfumato.runtime.tasks import Task, perform
from sfumato.types import Region
from sfumato.vista.evaluation.run import judge_pairs, judge_run
from sfumato.vista.world import render, sample_scene, with_finish

PROMPTS = ["a house and a lake under the sky", "a tree under the sky"]


def _task(store: ArtifactStore, pairs: int) -> tuple[Task, list, list]:
    scenes = [sample_scene(random.Random(f"judged {index}")) for index in range(2)]
    plain, fine = ([render(with_finish(scene, finish), 64) for scene in scenes] for finish in (False, True))
    names = [[store.put(encode_png(picture)) for picture in pictures] for pictures in (plain, fine)]
    regions = [{"prompt": "a glowing house", "box": [0, 0, 32, 32]}]
    rows = [{"before": x, "after": y, "regions": regions, "regions_after": regions} for x, y in zip(*names, strict=True)][:pairs]
    task = Task(
        stage="judge",
        kind="scoring.judge",
        items=({"set": "base", "pictures": names[0]}, {"set": "iteration 1", "pictures": names[1]}),
        params={"prompts": PROMPTS, "pairs": rows},
        model=scorers_version(JUDGE, {}, Settings()),
        model_reference=JUDGE,
    )
    return task, plain, fine


def test_the_task_says_what_the_judge_says(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    task, plain, fine = _task(store, 1)
    values = perform(task, HANDLERS[task.kind], store, {}).values
    advice = [Region("a glowing house", (0, 0, 32, 32))]
    expected = judge_run({"base": plain, "iteration 1": fine}, PROMPTS) | {"pairs": judge_pairs(plain[:1], fine[:1], [(advice, advice)])}
    assert values == expected
    assert values["iteration 1"]["finish"] > values["base"]["finish"] + 0.5


def test_without_pairs_nothing_is_said_of_them_and_another_judge_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    task, _, _ = _task(store, 0)
    assert set(HANDLERS[task.kind](task, store).values) == {"base", "iteration 1"}
    with pytest.raises(MissingWeights, match="the scorers .detector,judge. here"):
        HANDLERS[task.kind](task.model_copy(update={"model": "another"}), store)
