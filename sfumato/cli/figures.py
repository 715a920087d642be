"""The measurements of ``sfumato vista evaluate``, by the independent detector and judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sfumato.errors import InvalidInput

TARGETS = {
    "object_presence": 0.95,
    "finish_accuracy": 0.95,
    "grounding_recall": 0.90,
    "grounding_iou": 0.70,
    "grounding_kind": 0.97,
    "json_valid": 1.0,
    "grounding_recall_rendered": 0.95,
    "grounding_iou_rendered": 0.80,
    "vqa_accuracy": 0.95,
    "choice_accuracy": 0.95,
    "clip_retrieval": 0.90,
    "aesthetic_spearman": 0.95,
    "preference_accuracy": 0.95,
}
"""The least value of each figure."""


def choose(only: Sequence[str] | None) -> tuple[str, ...]:
    """The groups to measure, all by default.

    Raises:
        InvalidInput: an unknown group.
    """
    unknown = sorted(set(only or ()) - set(_GROUPS))
    if unknown:
        raise InvalidInput("only", f"{', '.join(unknown)} is unknown.", hint=f"The groups are {', '.join(_GROUPS)}.")
    return tuple(group for group in _GROUPS if not only or group in only)


def measure(groups: Sequence[str], on_group: Callable[[str], object]) -> dict[str, float]:
    """All figures of these groups by name."""
    figures: dict[str, float] = {}
    for group in groups:
        on_group(group)
        figures |= _GROUPS[group]()
    return figures


def _generator() -> dict[str, float]:
    from diffusers import FluxPipeline

    from services.generator.engine import GeneratorEngine
    from sfumato.types import GenerateRequest, Region
    from sfumato.vista.evaluation.detector import Detector
    from sfumato.vista.evaluation.generator import generator_figures, seconds
    from sfumato.vista.evaluation.judge import Judge
    from sfumato.vista.weights import locate

    pipeline = FluxPipeline.from_pretrained(locate("generator"))
    pipeline.set_progress_bar_config(disable=True)
    engine = GeneratorEngine(pipeline)
    regions = tuple(Region(f"a sky by day {i}", (0, 16 * i, 64, 16 * i + 16)) for i in range(4))
    figures = generator_figures(pipeline, Detector.load(), Judge.load())
    return figures | {"seconds_four_regions": seconds(lambda: engine.generate([GenerateRequest("a lake by day", 1, regions=regions)]))}


def _understanding() -> dict[str, float]:
    from diffusers import FluxPipeline

    from services.grounding.engine import GroundingEngine
    from services.grounding.local_backend import LocalBackend
    from services.grounding.profiles import profile_named
    from sfumato.vista.evaluation.detector import Detector
    from sfumato.vista.evaluation.generator import held_out, paint
    from sfumato.vista.evaluation.judge import Judge
    from sfumato.vista.evaluation.understanding import evaluate_understanding, on_generated
    from sfumato.vista.weights import locate

    engine = GroundingEngine(LocalBackend(locate("understanding")), profile_named("vista"))
    prompts = held_out()
    pipeline = FluxPipeline.from_pretrained(locate("generator"))
    pipeline.set_progress_bar_config(disable=True)
    images = paint(pipeline, [p.plain for p in prompts], [p.seed for p in prompts])

    def advice(image, prompt):  # noqa: ANN001, ANN202 - the engine's own types
        return engine.ground(image, prompt).regions

    def better(first, second):  # noqa: ANN001, ANN202 - the engine's own types
        return engine.compare(first, second, "a picture", both_orders=False).choice

    found, finish = Detector.load().detect(images), Judge.load().finish(images)
    generated = on_generated(advice, images, [p.plain for p in prompts], found, finish).figures()
    rendered = evaluate_understanding(advice, engine.ask, better, lambda prompt: engine.refine(prompt)[0])
    return rendered | generated | {"json_valid": min(rendered["json_valid"], generated["json_valid"])}


def _scoring() -> dict[str, float]:
    from services.scoring.engine import ScoringEngine
    from services.scoring.loading import load_scorers
    from sfumato.vista.evaluation.detector import Detector
    from sfumato.vista.evaluation.judge import Judge
    from sfumato.vista.evaluation.scorers import (
        aesthetic_spearman,
        clip_retrieval,
        detector_figures,
        judge_figures,
        preference_accuracy,
    )

    engine = ScoringEngine(load_scorers())

    def by(metric: str):  # noqa: ANN202 - a Score
        return lambda images, prompts: [row[metric] for row in engine.score(images, prompts, [metric])]

    preference = {name: preference_accuracy(by(name)) for name in ("pickscore", "mps")}
    return {
        "clip_retrieval": clip_retrieval(by("clip")),
        "aesthetic_spearman": aesthetic_spearman(by("aesthetic")),
        "preference_accuracy": min(preference.values()),
        "preference_accuracy_pickscore": preference["pickscore"],
        "preference_accuracy_mps": preference["mps"],
        **detector_figures(Detector.load()),
        **judge_figures(Judge.load()),
    }


_GROUPS: dict[str, Callable[[], dict[str, float]]] = {
    "generator": _generator,
    "understanding": _understanding,
    "scoring": _scoring,
}
