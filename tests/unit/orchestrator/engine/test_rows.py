"""Rows in a file are the rows that were put there, to the last bit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.rows import BLOCK, RowFile, batched, to_row_file
from orchestrator.recipes.artaug.state import Fresh, Sample, start
from orchestrator.recipes.inputs import held
from tests.unit.orchestrator import states

WORDS = "\u2028 \u00e9 \"quoted\"\n"
SAMPLES = tuple(replace(states.sample(index % 3, "kept"), seed=index, reason=WORDS) for index in range(3 * BLOCK + 1))


@given(values=st.lists(st.floats(), max_size=200))
def test_floats_come_back_to_the_last_bit(values: list[float]) -> None:
    assert [value.hex() for value in to_row_file(values)] == [value.hex() for value in values]


def test_samples_come_back_as_they_were() -> None:
    on_file = to_row_file(SAMPLES)
    assert on_file == SAMPLES and tuple(on_file) == SAMPLES and len(on_file) == len(SAMPLES)
    assert (on_file[0], on_file[BLOCK], on_file[-1], on_file[-3:]) == (SAMPLES[0], SAMPLES[BLOCK], SAMPLES[-1], SAMPLES[-3:])
    assert on_file != SAMPLES[1:] and on_file != (*SAMPLES[:-1], SAMPLES[0])
    assert isinstance(on_file[0], Sample) and isinstance(on_file[0].regions, tuple)
    with pytest.raises(IndexError):
        on_file[len(SAMPLES)]
    assert copy.deepcopy(on_file) is on_file
    assert tuple(to_row_file(())) == ()


@given(order=st.permutations(range(9)), last=st.integers(1, 4))
def test_blocks_may_be_written_in_any_order_and_are_read_in_theirs(order: list[int], last: int) -> None:
    rows = list(range(8 * 4 + last))
    blocks = list(batched(rows, 4))
    on_file: RowFile[int] = RowFile(4)
    for block in order:
        on_file.put(block, blocks[block])
    assert list(on_file) == rows
    assert [on_file[index] for index in range(len(rows))] == rows


def test_two_readers_do_not_disturb_each_other() -> None:
    on_file = to_row_file(range(300))
    assert all(a == b == on_file[a] for a, b in zip(on_file, on_file, strict=True))


def test_what_json_has_no_number_for_is_kept() -> None:
    scores = replace(SAMPLES[0], scores_after={"clip": math.nan, "mps": -math.inf})
    [back] = to_row_file([scores])
    assert back.scores_after is not None and math.isnan(back.scores_after["clip"]) and back.scores_after["mps"] == -math.inf


def test_samples_to_which_nothing_has_happened_are_made_when_they_are_looked_at() -> None:
    samples = start(states.plan()).samples
    assert isinstance(samples, Fresh)
    assert list(samples) == [samples[index] for index in range(4)] == list(samples[:]) == [*samples[:2], *samples[-2:]]
    assert (samples[1].asked, samples[-1].seed) == (states.PROMPTS[1], 13)


def test_few_prompts_are_held_in_memory_and_many_are_not() -> None:
    assert held(("a", "b"), 2) == ("a", "b")
    many = held((f"prompt {index}" for index in range(20_000)), 20_000)
    assert isinstance(many, RowFile)
    assert (len(many), many[12_345], many[-1]) == (20_000, "prompt 12345", "prompt 19999")
