"""The recipe's own decisions, on states written by hand: filter, review, alpha, stopping, comparing."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.recipes.artaug import RECIPE, measuring, pairs, tuning
from orchestrator.recipes.artaug.spec import ArtAugSpec, Filter
from orchestrator.recipes.artaug.state import KEPT, NO_GAIN, RULES, TOO_FEW, ArtAugPlan, Candidate, Sample, State, TuningAttempt, start
from orchestrator.recipes.models import Model
from orchestrator.recipes.plan import Plan
from orchestrator.recipes.tasks import Painted
from orchestrator.runs.submission import run_id
from sfumato.runtime.tasks import Json, Manifest, Task

MODELS = {name: Model(name, f"/{name}") for name in ("generator", "understanding", "scorers")}


def _plan(**changes: Any) -> ArtAugPlan:
    files = {"prompts": {"file": "p", "count": 2, "seed": 10}, "evaluate": {"file": "h", "count": 2, "seed": 90}}
    spec = ArtAugSpec.model_validate({"name": "x", "batch": 2, "tune": {"file": "t", "count": 2, "seed": 50}} | files | changes)
    return Plan(spec, {"train": ("a", "b"), "tune": ("t", "u"), "heldout": ("h", "i"), "ceiling": ()}, MODELS)


def _sample(name: str, rise: float = 1.0, clip: float = 0.0, **changes: Any) -> Sample:
    before, after = {"aesthetic": 5.0, "clip": 20.0}, {"aesthetic": 5.0 + rise, "clip": 20.0 + clip}
    sample = Sample(name, name, 0, Painted(f"{name}-x", "lx"), (), "", Painted(f"{name}-y", "ly"), before, after)
    return replace(sample, **changes)


def _done(task: Task, values: Json, files: dict[str, str] | None = None) -> Manifest:
    described = {"kind": task.kind, "items": task.items, "params": task.params, "model": task.model}
    return Manifest(task_id=task.id, values=values, files=files or {}, versions={}, **described)


@pytest.mark.parametrize(
    ("rise", "clip", "unsafe", "rule"),
    [
        (1.0, 0.0, 0.0, KEPT),
        (0.0, 1.0, 0.0, "aesthetic"),
        (0.4, 1.0, 0.0, "aesthetic"),
        (float("nan"), 1.0, 0.0, "aesthetic"),
        (1.0, -0.1, 0.0, "clip"),
        (1.0, float("nan"), 0.0, "clip"),
        (1.0, 0.0, 1.0, "nudenet"),
    ],
)
def test_the_filter_is_the_papers(rise: float, clip: float, unsafe: float, rule: str) -> None:
    sample = _sample("a", rise, clip)
    assert sample.scores_after is not None
    sample = replace(sample, scores_after={**sample.scores_after, "nudenet": unsafe})
    assert pairs.verdict(sample, Filter(min_gain=0.5)) == rule


def test_without_advice_there_is_no_pair() -> None:
    assert pairs.verdict(Sample("p", "p", 0), Filter()) == "no_advice"


def test_the_refined_prompt_is_painted_and_the_given_one_remembered() -> None:
    plan = _plan()
    state = start(plan)
    task = pairs.refine(plan, state, tuple(state.samples))
    assert task is not None
    samples = pairs.absorb_refined(tuple(state.samples), _done(task, [{"prompt": "a red house"}, {"prompt": "b"}]))
    assert [(s.asked, s.prompt, s.seed) for s in samples] == [("a", "a red house", 10), ("b", "b", 11)]
    assert pairs.generate(plan, state, samples).items[0]["prompt"] == "a red house"
    assert pairs.refine(_plan(ground={"refine": False}), state, tuple(state.samples)) is None


def test_a_vlm_that_does_not_prefer_the_new_picture_in_both_orders_removes_the_pair() -> None:
    plan = _plan(filter={"review": "vlm"})
    samples = (_sample("a"), _sample("b"), _sample("c", rise=-1.0))
    task = pairs.vlm_review(plan, State(samples), samples)
    assert task is not None
    assert [item["a"] for item in task.items] == ["a-x", "b-x"]  # the third the rules had removed already
    reviewed = pairs.absorb_vlm_review(samples, _done(task, [{"choice": "B", "reason": ""}, {"choice": "tie", "reason": "alike"}]))
    state = pairs.select(plan, State(reviewed), [])
    assert [(s.verdict, s.reason) for s in state.samples] == [(KEPT, ""), ("vlm_review", "alike"), ("aesthetic", "")]


def test_a_person_reviews_the_pairs_that_the_vlm_kept_and_decides() -> None:
    plan = _plan(filter={"review": "vlm+human"}, stop={"min_pairs": 1})
    state = State((_sample("a"), _sample("b", verdict="vlm_review"), _sample("c")))
    shown = pairs.human_review(plan, state)
    assert [task.items[0]["a"] for task in shown] == ["a-x", "c-x"]
    answers = [_done(shown[0], [{"accepted": False, "reason": "dull"}]), _done(shown[1], [{"accepted": True, "reason": ""}])]
    state = pairs.select(plan, pairs.absorb_human_review(plan, state, answers), [])
    assert [s.verdict for s in state.samples] == ["human_review", "vlm_review", KEPT]
    assert pairs.human_review(_plan(), state) == []


def test_of_more_pairs_than_are_trained_those_that_rose_most_are_taken() -> None:
    plan = _plan(train={"pairs": 2}, stop={"min_pairs": 1})
    state = pairs.select(plan, State((_sample("a", 1.0), _sample("b", 3.0), _sample("c", 2.0))), [])
    assert state.attempt is not None
    assert [sample.asked for sample in state.attempt.pairs] == ["b", "c"]
    assert all(sample.verdict == KEPT for sample in state.samples)


def test_too_few_pairs_end_the_run_without_training() -> None:
    plan = _plan(stop={"min_pairs": 2})
    state = pairs.select(plan, State((_sample("a"), _sample("b", rise=-1.0))), [])
    assert state.stop_reason == TOO_FEW
    assert tuning.train(plan, state) == []
    state = tuning.conclude(plan, state, [])
    assert state.iterations[0].verdicts == dict.fromkeys((KEPT, *RULES), 0) | {KEPT: 1, "aesthetic": 1}
    assert state.adapter == ""


def _candidates(state: State, plan: ArtAugPlan, scores: list[tuple[float, float]]) -> State:
    """The state after choosing, when base, standing model and candidates have these aesthetic and CLIP scores."""
    fused = [_done(task, {}, {"adapter.safetensors": f"f{i}"}) for i, task in enumerate(tuning.stack(plan, state))]
    state = tuning.absorb_stacked(plan, state, fused)
    painting = tuning.repaint(plan, state)
    files = {f"{i}.{kind}": f"{i}{kind}" for i in range(2) for kind in ("png", "safetensors")}
    state = tuning.absorb_repainted(plan, state, [_done(task, [None, None], files) for task in painting])
    values = [{"aesthetic": aesthetic, "clip": clip} for aesthetic, clip in scores for _ in range(2)]
    rated = [_done(task, values[2 * i : 2 * i + 2]) for i, task in enumerate(tuning.rate(plan, state))]
    return tuning.choose_alpha(plan, state, rated)


def _attempt(objective: str = "differential") -> State:
    return State((), attempt=TuningAttempt(objective, (), "", (), average="mean"))


def test_the_most_beautiful_alpha_that_still_agrees_with_the_prompts_is_chosen() -> None:
    plan = _plan(fuse={"alpha": [1.0, 2.0, 3.0], "clip_loss": 0.2})
    state = _candidates(_attempt(), plan, [(5.0, 27.0), (5.0, 27.0), (6.0, 27.1), (7.0, 26.9), (8.0, 26.7)])
    assert state.attempt is not None
    assert (state.attempt.alpha, state.attempt.stacked, state.stop_reason) == (2.0, "f1", "")
    assert [c.aesthetic for c in state.attempt.candidates] == [6.0, 7.0, 8.0]


def test_when_no_alpha_does_good_nothing_is_fused_and_the_run_ends() -> None:
    plan = _plan(fuse={"alpha": [1.0, 2.0]})
    state = _candidates(_attempt(), plan, [(5.0, 27.0), (6.0, 27.0), (5.9, 27.0), (7.0, 20.0)])
    assert state.attempt is not None
    assert (state.attempt.alpha, state.stop_reason) == (0.0, NO_GAIN)
    assert tuning.product(plan, state) == []


def test_naive_training_is_compared_at_the_alpha_that_agrees_best_when_none_agrees_enough() -> None:
    plan = _plan(fuse={"alpha": [1.0, 2.0]})
    state = _candidates(_attempt("naive"), plan, [(5.0, 27.0), (5.0, 27.0), (6.0, 20.0), (7.0, 19.0)])
    assert state.attempt is not None
    assert (state.attempt.alpha, state.stop_reason) == (1.0, "")


def test_later_iterations_stand_on_earlier_ones() -> None:
    plan = _plan(fuse={"alpha": [1.0, 2.0]})
    state = State((), attempt=TuningAttempt("differential", (), "so-far", (("m1", 1.5), ("m2", 1.0)), average="m3"))
    tasks = tuning.stack(plan, state)
    assert [task.items for task in tasks] == [("m1", "m2", "m3")] * 2
    assert [task.params["alphas"] for task in tasks] == [[1.5, 1.0, 1.0], [1.5, 1.0, 2.0]]
    trained = tuning.train(plan, replace(state, attempt=replace(state.attempt, pairs=(_sample("a"),)) if state.attempt else None))
    assert trained[0].params["adapter"] == "so-far"


def test_the_base_model_paints_the_held_out_prompts_once() -> None:
    plan = _plan()
    attempt = TuningAttempt("differential", (), "", (), stacked="tuned", alpha=1.0)
    state = State((), attempt=attempt)
    painting = measuring.repaint(plan, state)
    assert [task.params["adapter"] for task in painting] == ["", "tuned"]
    files = [{f"{i}.{kind}": f"{n}{i}" for i in range(2) for kind in ("png", "safetensors")} for n in range(2)]
    state = measuring.absorb_repainted(plan, state, [_done(t, [None] * 2, f) for t, f in zip(painting, files, strict=True)])
    rated = [_done(task, [{"clip": 1.0}, {"clip": 2.0}]) for task in measuring.rate(plan, state)]
    state = measuring.absorb_rated(plan, state, rated)
    assert state.base is not None and state.base.pictures == ("00", "01")
    assert [task.params["adapter"] for task in measuring.repaint(plan, replace(state, attempt=attempt))] == ["tuned"]


def test_every_iteration_begins_with_the_same_prompts_and_seeds() -> None:
    plan = _plan(stop={"max_iterations": 2})
    first = start(plan)
    state = tuning.conclude(plan, replace(first, attempt=TuningAttempt("differential", (), "", (), alpha=1.0, stacked="s1")), [])
    assert (state.samples, state.adapter, state.stop_reason) == (first.samples, "s1", "")
    state = tuning.conclude(plan, replace(state, attempt=TuningAttempt("differential", (), "s1", (), alpha=1.0, stacked="s2")), [])
    assert (state.adapter, state.stop_reason) == ("s2", "max_iterations")


def test_naive_training_takes_the_first_iterations_pairs_and_the_base_model() -> None:
    plan = _plan(compare=True)
    first = TuningAttempt("differential", (_sample("a"),), "", (), average="m", alpha=1.0, stacked="s1")
    state = tuning.begin_naive(plan, tuning.conclude(plan, State((), attempt=first), []), [])
    assert state.attempt == TuningAttempt("naive", first.pairs, "", ())
    assert tuning.train(plan, state)[0].params["objective"] == "naive"
    assert tuning.begin_naive(_plan(), state, []).attempt is None


def test_joint_training_is_one_task_for_one_adapter_of_all_enhanced_pictures() -> None:
    plan = _plan(compare="joint", joint={"steps": 7, "pictures": 8, "together": 2}, precision="bfloat16", memory_gb=2)
    pairs_of = (_sample("a"), _sample("b"))
    first = TuningAttempt("differential", pairs_of, "", (), average="m", alpha=1.0, stacked="s1")
    state = tuning.begin_naive(plan, tuning.conclude(plan, State((), attempt=first), []), [])
    (task,) = tuning.train(plan, state)
    assert (task.kind, task.service) == ("joint.train", "joint")
    assert [item["latents"] for item in task.items] == [sample.after and sample.after.latents for sample in pairs_of]
    assert task.params == {
        "steps": 7, "pictures": 8, "together": 2, "rank": 8, "learning_rate": 1e-3, "guidance": 1.0, "width": 64, "height": 64,
        "adapter": "", "seed": 10, "precision": "bfloat16",
    }  # fmt: skip
    lost = tuning.absorb_trained(plan, state, [tuning.on_dead_letter(task, "failed at every try")])
    assert lost.attempt and lost.attempt.trainings[0].dead_letter and len(lost.attempt.trainings) == 1 and not lost.stop_reason


def test_what_decides_nothing_is_not_in_a_runs_id() -> None:
    sets, models = {"train": ("a",), "heldout": ("h",)}, {"generator": Model("1", "")}
    ids = [run_id(RECIPE, _plan(**more).spec, sets, models) for more in ({}, {"joint": {"steps": 7}}, {"compare": "joint"})]
    ids.append(run_id(RECIPE, _plan(compare="joint", joint={"steps": 7}).spec, sets, models))
    assert ids[0] == ids[1] and len(set(ids)) == 3


def test_tasks_say_in_what_precision_and_memory_they_are_to_be_done() -> None:
    plan = _plan(precision="bfloat16", memory_gb=2)
    state = start(plan)
    assert pairs.generate(plan, state, tuple(state.samples)).params["precision"] == "bfloat16"
    attempt = TuningAttempt("differential", (_sample("a"),), "", ())
    assert tuning.train(plan, State((), attempt=attempt))[0].params["memory"] == 2 * 2**30
    assert "memory" not in pairs.generate(_plan(), state, tuple(state.samples)).params


def test_a_candidate_without_choice_is_taken_as_it_is() -> None:
    plan = _plan(tune=None)
    attempt = TuningAttempt("differential", (), "", (), candidates=(Candidate(1.0, "f"),))
    state = tuning.choose_alpha(plan, replace(_attempt(), attempt=attempt), [])
    assert state.attempt is not None and (state.attempt.alpha, state.attempt.stacked) == (1.0, "f")
