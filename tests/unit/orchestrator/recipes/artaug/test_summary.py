"""The numbers of a run, against reckoning by hand; every one of them is finite or null."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.recipes.artaug.state import RULES, HeldOutResult, State
from orchestrator.recipes.artaug.summary import summarise
from sfumato.scoring.preference import win_probability
from tests.unit.orchestrator import states


def _summary(state: State, judged: Any = states.JUDGED) -> dict[str, Any]:
    return summarise(states.plan(), replace(state, judged=judged))


def test_preference_is_the_sigmoid_of_the_difference_and_never_overflows() -> None:
    assert win_probability(1.5, 0.25) == pytest.approx(1 / (1 + math.exp(-1.25)))
    assert (win_probability(1e6, 0.0), win_probability(0.0, 1e6)) == (1.0, 0.0)


def test_an_iteration_counts_what_every_rule_removed_and_what_is_left() -> None:
    first = _summary(states.finished())["iterations"][0]
    assert (first["prompts"], first["kept"], first["kept_share"]) == (4, 2, 0.5)
    assert first["removed_by"] == dict.fromkeys(RULES, 0) | {"no_advice": 1, "clip": 1}
    assert first["kept"] + sum(first["removed_by"].values()) == first["prompts"]
    assert (first["regions"], first["answers_rejected"]) == (6, 1)


def test_figure_4_takes_the_means_of_all_samples_with_both_pictures_and_of_the_kept_ones_beside() -> None:
    first = _summary(states.finished())["iterations"][0]
    assert (first["aesthetic_before"], first["aesthetic_after"]) == (2.0, 2.0 + (3 + 1 + 2) / 3)
    assert first["kept_pairs"]["aesthetic_after"] == 2.0 + (3 + 1) / 2
    assert (first["clip_before"], first["clip_after"], first["image_cosine"]) == (80.0, 81.0, 0.75)


def test_an_iteration_tells_of_its_training() -> None:
    first = _summary(states.finished())["iterations"][0]
    assert (first["trained"], first["ranks"], first["alpha"]) == (1, [8], 2.0)
    assert first["diverged"] == ["the loss is not finite at step 3"]
    assert [(row["alpha"], row["aesthetic"]) for row in first["alphas"]] == [(0.0, 2.0), (1.0, 2.5), (2.0, 3.0)]
    assert first["losses"] == [{"before": {"first": 0.4, "last": 0.3}, "after": {"first": 0.5, "last": 0.2}}]


def test_tuned_is_the_last_fused_iteration_and_wins_are_mean_probabilities() -> None:
    evaluation = _summary(states.finished())["evaluation"]
    expected = 100 / (1 + math.exp(-2.0))  # PickScore 2 against 0 on both prompts
    assert evaluation["pickscore_win"] == evaluation["tuned"]["pickscore"] == pytest.approx(expected)
    assert evaluation["base"]["pickscore"] + evaluation["tuned"]["pickscore"] == 100
    assert evaluation["mps_win"] == pytest.approx(100 / (1 + math.exp(-0.5)))
    assert (evaluation["base"]["aesthetic"], evaluation["tuned"]["aesthetic"]) == (2.5, 4.0)
    assert (evaluation["base"]["nudenet"], evaluation["tuned"]["nudenet"]) == (50.0, 0.0)  # a share in %


def test_a_win_is_the_mean_of_probabilities_and_not_the_probability_of_means() -> None:
    state = states.finished()
    base = HeldOutResult(("a", "b"), (states.scores(pickscore=0.0), states.scores(pickscore=0.0)))
    last = state.iterations[1]
    assert last.attempt is not None
    tuned = HeldOutResult(("c", "d"), (states.scores(pickscore=4.0), states.scores(pickscore=-1.0)))
    iterations = (state.iterations[0], replace(last, attempt=replace(last.attempt, heldout=tuned)), state.iterations[2])
    win = _summary(replace(state, base=base, iterations=iterations))["evaluation"]["pickscore_win"]
    assert win == pytest.approx(50 * (win_probability(4, 0) + win_probability(-1, 0)))


def test_the_judges_scores_of_base_tuned_and_ceiling_are_listed_together() -> None:
    evaluation = _summary(states.finished())["evaluation"]
    assert [evaluation[name]["finish_objects"] for name in ("base", "tuned", "ceiling")] == [0.2, 0.8, 1.0]
    assert evaluation["finish_gain"] == {name: pytest.approx(value) for name, value in _gains().items()}
    assert evaluation["composition_iou"] == 0.66


def _gains() -> dict[str, float]:
    return {"finish": (0.5 - 0.1) / (0.9 - 0.1), "finish_objects": (0.8 - 0.2) / (1 - 0.2), "finish_sky": 0.2 / 0.8}


def test_the_comparison_takes_the_first_iteration_and_its_preferences_sum_to_100() -> None:
    comparison = _summary(states.finished())["comparison"]
    assert comparison is not None
    assert (comparison["differential"]["aesthetic"], comparison["naive"]["aesthetic"]) == (3.0, 2.5)
    assert comparison["differential"]["pickscore"] == pytest.approx(100 / (1 + math.exp(-0.5)))  # 1 against 0.5
    for metric in ("pickscore", "mps"):
        assert comparison["differential"][metric] + comparison["naive"][metric] == 100


@pytest.mark.parametrize("state", [states.at_once(), states.no_gain(), states.without_advice()])
def test_where_nothing_was_fused_there_is_no_tuned_model_and_no_comparison(state: State) -> None:
    figures = _summary(state, {"base": states.JUDGED["base"]})
    evaluation = figures["evaluation"]
    assert (evaluation["tuned"], evaluation["pickscore_win"], evaluation["mps_win"]) == (None, None, None)
    assert (figures["comparison"], evaluation["composition_iou"]) == (None, None)
    assert evaluation["base"]["aesthetic"] == 2.5
    assert set(evaluation["ceiling"]) >= {"finish", "finish_objects", "finish_sky"}


def test_an_iteration_with_no_strength_worth_its_while_has_no_alpha_and_shows_what_was_tried() -> None:
    first = _summary(states.no_gain(), None)["iterations"][0]
    assert (first["alpha"], first["heldout"], len(first["alphas"]), first["trained"]) == (None, None, 3, 1)


def test_without_a_judge_finish_is_null_everywhere() -> None:
    figures = _summary(states.finished(), None)
    assert figures["judge"] is None
    assert [figures["evaluation"][name]["finish"] for name in ("base", "tuned", "ceiling")] == [None] * 3


def test_a_metric_that_was_not_measured_is_null() -> None:
    state = states.finished()
    few = HeldOutResult(("a", "b"), ({"clip": 80.0, "aesthetic": 2.0}, {"clip": 80.0, "aesthetic": 2.0}))
    evaluation = _summary(replace(state, base=few))["evaluation"]
    assert (evaluation["base"]["nudenet"], evaluation["pickscore_win"]) == (None, None)


def test_no_folder_and_no_time_is_named_and_libraries_are_the_workers() -> None:
    figures = summarise(states.plan(), replace(states.finished(), versions={"torch": ("2.1", "2.2"), "python": ("3.11",)}))
    assert figures["spec"]["evaluate"]["file"] == "held.txt"
    assert figures["versions"]["libraries"] == {"torch": "2.1 and 2.2", "python": "3.11"}
    assert "seconds" not in json.dumps(figures)


ANY = st.floats(-1e300, 1e300) | st.sampled_from((math.nan, math.inf, -math.inf))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(ANY, min_size=8, max_size=8),
    judged=st.none() | st.dictionaries(st.sampled_from(sorted(states.JUDGED)), st.dictionaries(st.sampled_from(("finish", "x")), ANY)),
    build=st.sampled_from((states.finished, states.at_once, states.no_gain, states.without_advice)),
)
def test_every_number_is_finite_or_null(values: list[float], judged: Any, build: Any) -> None:
    state = build()
    rows = tuple(states.scores(aesthetic=a, pickscore=b, mps=c, nudenet=d) for a, b, c, d in (values[:4], values[4:]))
    first = state.iterations[0]
    samples = tuple(replace(one, cosine=values[0], scores_after=rows[0] if one.after else None) for one in first.samples)
    changed = replace(first, samples=samples)
    if changed.attempt is not None:
        heldout = HeldOutResult(("a", "b"), rows) if changed.attempt.heldout else None
        changed = replace(changed, attempt=replace(changed.attempt, compression={"error": values[1]}, heldout=heldout))
    state = replace(state, base=HeldOutResult(("a", "b"), rows), iterations=(changed, *state.iterations[1:]))
    json.dumps(_summary(state, judged), sort_keys=True, allow_nan=False)
