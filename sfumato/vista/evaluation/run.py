"""What the independent detector and judge say of a run's held-out pictures. Called after a run; no stage sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sfumato.types import Image
from sfumato.vista.evaluation.detector import Detector
from sfumato.vista.evaluation.generator import composition_iou
from sfumato.vista.evaluation.judge import Judge
from sfumato.vista.world import KINDS


def judge_run(images: Mapping[str, Sequence[Image]], prompts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per variant (``"base"``, ``"tuned"``, ...): finish of objects and sky, presence of what the prompts name, overlap with base.

    Args:
        images: for each variant one picture a prompt, painted from the same seeds; ``"base"`` is what others are compared with.
        prompts: the plain prompts, in the same order.
    """
    detector, judge = Detector.load(), Judge.load()
    found = {variant: detector.detect(pictures) for variant, pictures in images.items()}
    figures: dict[str, dict[str, float]] = {}
    for variant, pictures in images.items():
        marks = judge.finish(pictures)
        named = [[kind for kind in KINDS if kind in prompt.split(" under ")[0].replace(",", "").split()] for prompt in prompts]
        objects = [mark[k] for mark, seen in zip(marks, found[variant], strict=True) for k in seen]
        figures[variant] = {
            "finish_objects": float(np.mean(objects)) if objects else float("nan"),
            "finish_sky": float(np.mean([mark["sky"] for mark in marks])),
            "object_presence": float(np.mean([k in seen for kinds, seen in zip(named, found[variant], strict=True) for k in kinds])),
        }
        if "base" in found and variant != "base":
            figures[variant]["composition_iou"] = composition_iou(found["base"], found[variant])
    return figures
