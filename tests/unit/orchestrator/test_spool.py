"""Rows in a file are the rows that were put there, to the last bit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator.spec import held
from orchestrator.spool import BLOCK, Spool, batched, spooled

from orchestrator.recipes.artaug import Plan, Sample
from orchestrator.recipes.artaug.state import Fresh, start
from tests.unit.orchestrator import states

WORDS = "\u2028 \u00e9 \"quoted\"\n"
SAMPLES = tuple(replace(states.sample(index % 3, "kept"), seed=index, reason=WORDS) for index in range(3 * BLOCK + 1))


@given(values=st.lists(st.floats(), max_size=200))
def test_floats_come_back_to_the_last_bit(values: list[float]) -> None:
    assert [value.hex() for value in spooled(values)] == [value.hex() for value in values]


def test_samples_come_back_as_they_were() -> None:
    spool = spooled(SAMPLES)
    assert spool == SAMPLES and tuple(spool) == SAMPLES and len(spool) == len(SAMPLES)
    assert (spool[0], spool[BLOCK], spool[-1], spool[-3:]) == (SAMPLES[0], SAMPLES[BLOCK], SAMPLES[-1], SAMPLES[-3:])
    assert spool != SAMPLES[1:] and spool != (*SAMPLES[:-1], SAMPLES[0])
    assert isinstance(spool[0], Sample) and isinstance(spool[0].regions, tuple)
    with pytest.raises(IndexError):
        spool[len(SAMPLES)]
    assert copy.deepcopy(spool) is spool
    assert tuple(spooled(())) == ()


@given(order=st.permutations(range(9)), last=st.integers(1, 4))
def test_blocks_may_be_written_in_any_order_and_are_read_in_theirs(order: list[int], last: int) -> None:
    rows = list(range(8 * 4 + last))
    blocks = list(batched(rows, 4))
    spool: Spool[int] = Spool(4)
    for block in order:
        spool.put(block, blocks[block])
    assert list(spool) == rows
    assert [spool[index] for index in range(len(rows))] == rows


def test_two_readers_do_not_disturb_each_other() -> None:
    spool = spooled(range(300))
    assert all(a == b == spool[a] for a, b in zip(spool, spool, strict=True))


def test_what_json_has_no_number_for_is_kept() -> None:
    scores = replace(SAMPLES[0], scores_after={"clip": math.nan, "mps": -math.inf})
    [back] = spooled([scores])
    assert back.scores_after is not None and math.isnan(back.scores_after["clip"]) and back.scores_after["mps"] == -math.inf


def test_samples_to_which_nothing_has_happened_are_made_when_they_are_looked_at() -> None:
    plan: Plan = states.plan()
    samples = start(plan).samples
    assert isinstance(samples, Fresh)
    assert list(samples) == [samples[index] for index in range(4)] == list(samples[:]) == [*samples[:2], *samples[-2:]]
    assert (samples[1].asked, samples[-1].seed) == (states.PROMPTS[1], 13)


def test_few_prompts_are_held_in_memory_and_many_are_not() -> None:
    assert held(("a", "b"), 2) == ("a", "b")
    many = held((f"prompt {index}" for index in range(20_000)), 20_000)
    assert isinstance(many, Spool)
    assert (len(many), many[12_345], many[-1]) == (20_000, "prompt 12345", "prompt 19999")
