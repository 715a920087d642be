"""What a run shows while it goes on, and what its journal keeps: driven by the engine's own events over runs built by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from orchestrator.events import Event, Keeper, Teller
from rich.console import Console

from orchestrator.engine import Progress
from orchestrator.recipes.artaug import State
from sfumato.cli.progress import RunProgress
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import read_image
from sfumato.runtime.journal import RunJournal
from tests.unit.orchestrator import states


def _told(store: ArtifactStore) -> list[Event]:
    """The events of `_progress`, as they come out of a message."""
    teller = Teller()
    return [Event.model_validate_json(teller.event(progress).model_dump_json()) for progress in _progress(store)]


def _progress(store: ArtifactStore) -> list[Progress]:
    """Two iterations, the second with too few pairs, and the comparison, as the engine tells of them."""
    whole = states.finished(store, iterations=1)
    first, second = whole.iterations
    empty = replace(whole, iterations=(), base=None, ceiling=None, naive=None, stop_reason="")
    scored = tuple(replace(sample, verdict="") for sample in first.samples)
    filtered = replace(empty, samples=first.samples, trial=first.trial)
    measured = replace(filtered, base=whole.base)
    concluded = replace(empty, iterations=(first,), base=whole.base)
    few = replace(concluded, samples=second.samples, stop_reason=whole.stop_reason)
    ended = replace(few, samples=whole.samples, iterations=(first, second))
    compared = replace(ended, trial=whole.naive)
    return [
        Progress("generate", 1, 2, 0, 0, empty),
        Progress("generate", 2, 2, 0, 0, empty),
        Progress("score", 1, 2, 1, 0, empty, scored[:2]),
        Progress("score", 2, 2, 1, 0, empty, scored[2:]),
        Progress("filter", 0, 0, 0, 0, filtered),
        Progress("train", 0, 1, 0, 0, filtered),
        Progress("train", 1, 1, 0, 0, filtered),
        Progress("choose", 3, 3, 0, 0, filtered),
        Progress("measure", 2, 2, 0, 0, measured),
        Progress("finish", 0, 1, 0, 0, measured),
        Progress("finish", 1, 1, 0, 0, concluded),
        Progress("generate", 2, 2, 0, 0, concluded),
        Progress("filter", 0, 0, 0, 0, few),
        Progress("train", 0, 0, 0, 0, few),
        Progress("finish", 0, 0, 0, 0, ended),
        Progress("naive", 0, 0, 0, 0, compared),
        Progress("train", 1, 1, 0, 0, compared),
        Progress("measure", 1, 1, 0, 0, compared),
        Progress("compare", 1, 1, 0, 0, ended),
    ]


def _shown(folder: Path, *, terminal: bool = False) -> tuple[str, list[dict[str, Any]]]:
    out = io.StringIO()
    store = ArtifactStore(str(folder / "artifacts"))
    console = Console(file=out, force_terminal=terminal, width=200)
    with RunJournal(folder / "metrics.jsonl") as journal, Keeper(journal) as keeper, RunProgress(console, folder, store.get) as progress:
        for event in _told(store):
            keeper.keep(event)
            progress.show(event)
    return out.getvalue(), journal.events()


def test_every_finished_stage_is_a_line_with_its_iteration(tmp_path: Path) -> None:
    text, _ = _shown(tmp_path)
    for words in (
        "iteration 1  generate 2/2",
        "iteration 1  score 2/2  1 reused, aesthetic X 2.00, X' 4.00",
        "iteration 1  filter  2 of 4 kept (50%)",
        "iteration 1  train 1/1  1 diverged",
        "iteration 1  choose 3/3  alpha 2",
        "iteration 1: 2 of 4 kept (50%), fused with alpha 2, aesthetic 2.50 -> 3.00 on held-out prompts",
        "iteration 2  generate 2/2",
        "iteration 2  filter  0 of 4 kept (0%)",
        "iteration 2: 0 of 4 kept (0%); too few pairs survive",
        "comparison with naive training",
        "comparison  train 1/1",
    ):
        assert words in text, words
    assert "generate 1/2" not in text


def test_the_journal_has_a_line_a_stage_and_the_comparison_under_0(tmp_path: Path) -> None:
    _, events = _shown(tmp_path)
    stages = [(event["iteration"], event["stage"]) for event in events]
    assert stages == [
        *((1, stage) for stage in ("generate", "score", "filter", "train", "choose", "measure", "finish")),
        *((2, stage) for stage in ("generate", "filter", "finish")),
        *((0, stage) for stage in ("train", "measure", "compare")),
    ]
    by_stage = {event["stage"]: event for event in events[:7]}
    assert (by_stage["score"]["done"], by_stage["score"]["total"], by_stage["score"]["reused"]) == (2, 2, 1)
    assert (by_stage["filter"]["kept"], by_stage["filter"]["kept_share"]) == (2, 0.5)
    assert (by_stage["choose"]["alpha"], len(by_stage["choose"]["tried"])) == (2.0, 2)
    assert (by_stage["measure"]["aesthetic_base"], by_stage["measure"]["aesthetic_tuned"]) == (2.5, 3.0)
    assert events[9]["stop_reason"] == "too few pairs survive"


def test_the_first_pair_is_drawn_once_and_the_latest_beside_it(tmp_path: Path) -> None:
    text, _ = _shown(tmp_path)
    first = (tmp_path / "first-pair.png").read_bytes()
    assert text.count("first-pair.png") == 1
    picture = read_image(tmp_path / "latest-pair.png")
    assert picture.shape[1] >= 2 * 512 and picture.shape[0] > 512  # both side by side, the advice in words below
    again, _ = _shown(tmp_path)  # a run that is resumed
    assert (tmp_path / "first-pair.png").read_bytes() == first
    assert "latest pair" in again


def test_a_terminal_sees_bars_and_an_eta(tmp_path: Path) -> None:
    text, _ = _shown(tmp_path, terminal=True)
    for words in ("generate", "ETA", "2/2", "kept (50%)", "first pair"):
        assert words in text, words
    assert "iteration 1  generate 2/2" not in text


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_breaks_off_says_so_in_its_journal(tmp_path: Path, error: type[BaseException]) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    with RunJournal(tmp_path / "metrics.jsonl") as journal:
        with pytest.raises(error), Keeper(journal) as keeper:
            keeper.keep(_told(store)[0])
            raise error
        [event] = journal.events()
    assert (event["iteration"], event["stage"], event["reason"]) == (1, "stopped", error.__name__)


def test_all_lines_are_json_without_nan(tmp_path: Path) -> None:
    _shown(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_run_without_any_pair_shows_none(tmp_path: Path) -> None:
    state: State = states.without_advice()
    event = Teller().event(Progress("regenerate", 2, 2, 0, 0, replace(state, iterations=()), state.iterations[0].samples))
    assert event.pair is None
    with RunProgress(Console(file=io.StringIO()), tmp_path, ArtifactStore(str(tmp_path / "artifacts")).get) as progress:
        progress.show(event)
    assert not (tmp_path / "first-pair.png").exists()


def test_who_comes_late_sees_the_present_in_the_newest_event_of_every_stage(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    told = _told(store)[:8]
    newest = {event.stage: event for event in told}
    out = io.StringIO()
    with RunProgress(Console(file=out, width=200), tmp_path, store.get) as progress:
        for event in sorted(newest.values(), key=lambda event: event.number):
            progress.show(event)
    for words in ("iteration 1  score 2/2  1 reused, aesthetic X 2.00, X' 4.00", "2 of 4 kept (50%)", "first pair", "choose 3/3  alpha 2"):
        assert words in out.getvalue(), words
    assert max(len(event.model_dump_json()) for event in told) < 1000
