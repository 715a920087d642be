"""What a run shows while it is executed, and what its journal keeps: driven by the engine's own reports over runs built by hand."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from orchestrator.engine.stages import Loop, Phase, Progress
from orchestrator.recipes.artaug import RECIPE
from orchestrator.recipes.artaug.state import Sample, State
from orchestrator.recipes.events import EventBuilder
from orchestrator.runs.journal import JournalWriter
from sfumato.cli.progress import RunProgress
from sfumato.runs.records import Event, ShownPicture
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png, read_image
from sfumato.runtime.journal import RunJournal
from tests.unit.orchestrator import states

STAGES = {(part.name, stage.name): stage for part in RECIPE.stages if isinstance(part, Loop | Phase) for stage in part.stages}


def _told(store: ArtifactStore) -> list[Event]:
    """The events of `_progress`, as they come out of a message."""
    builder = EventBuilder(RECIPE.shown)
    return [Event.model_validate_json(builder.event(progress).model_dump_json()) for progress in _progress(store)]


def _at(iteration: int, stage: str, done: int, total: int, state: State, samples: tuple[Sample, ...] = (), *, reused: int = 0) -> Progress:
    """Progress of a stage; iteration 0 is the comparison."""
    phase = "iteration" if iteration else "comparison"
    found: Any = STAGES[phase, stage]
    return Progress(found, phase, iteration, done, total, reused, 0, state, samples)


def _progress(store: ArtifactStore) -> list[Progress]:
    """Two iterations, the second with too few pairs, and the comparison, as the engine reports them."""
    whole = states.finished(store, iterations=1)
    first, second = whole.iterations
    empty = replace(whole, iterations=(), base=None, ceiling=None, naive=None, stop_reason="")
    scored = tuple(replace(sample, verdict="") for sample in first.samples)
    filtered = replace(empty, samples=first.samples, attempt=first.attempt)
    measured = replace(filtered, base=whole.base)
    concluded = replace(empty, iterations=(first,), base=whole.base)
    few = replace(concluded, samples=second.samples, stop_reason=whole.stop_reason)
    ended = replace(few, samples=whole.samples, iterations=(first, second))
    compared = replace(ended, attempt=whole.naive)
    return [
        _at(1, "generate", 1, 2, empty),
        _at(1, "generate", 2, 2, empty),
        _at(1, "score", 1, 2, empty, scored[:2], reused=1),
        _at(1, "score", 2, 2, empty, scored[2:], reused=1),
        _at(1, "filter", 0, 0, filtered),
        _at(1, "train", 0, 1, filtered),
        _at(1, "train", 1, 1, filtered),
        _at(1, "choose_alpha", 3, 3, filtered),
        _at(1, "score_heldout", 2, 2, measured),
        _at(1, "conclude", 0, 1, measured),
        _at(1, "conclude", 1, 1, concluded),
        _at(2, "generate", 2, 2, concluded),
        _at(2, "filter", 0, 0, few),
        _at(2, "train", 0, 0, few),
        _at(2, "conclude", 0, 0, ended),
        _at(0, "naive", 0, 0, compared),
        _at(0, "train", 1, 1, compared),
        _at(0, "score_heldout", 1, 1, compared),
        _at(0, "ground_again", 1, 1, ended),
    ]


def _shown(folder: Path, *, terminal: bool = False) -> tuple[str, list[dict[str, Any]]]:
    out = io.StringIO()
    store = ArtifactStore(str(folder / "artifacts"))
    console = Console(file=out, force_terminal=terminal, width=200)
    with (
        RunJournal(folder / "metrics.jsonl") as journal,
        JournalWriter(journal) as writer,
        RunProgress(console, folder, store.get) as progress,
    ):
        for event in _told(store):
            writer.write(event)
            progress.show(event)
    return out.getvalue(), journal.events()


def test_every_finished_stage_is_a_line_with_its_iteration(tmp_path: Path) -> None:
    text, _ = _shown(tmp_path)
    for words in (
        "iteration 1  generate 2/2",
        "iteration 1  score 2/2  1 reused, aesthetic X 2.00, X' 4.00",
        "iteration 1  filter  2 of 4 kept (50%)",
        "iteration 1  train 1/1  1 diverged",
        "iteration 1  choose_alpha 3/3  alpha 2",
        "iteration 1: 2 of 4 kept (50%), fused with alpha 2, aesthetic 2.50 -> 3.00 on held-out prompts",
        "iteration 2  generate 2/2",
        "iteration 2  filter  0 of 4 kept (0%)",
        "iteration 2: 0 of 4 kept (0%); too few pairs survive",
        "comparison  train 1/1",
    ):
        assert words in text, words
    assert "generate 1/2" not in text


def test_the_journal_has_a_line_for_every_stage_of_every_phase(tmp_path: Path) -> None:
    _, events = _shown(tmp_path)
    stages = [(event["phase"], event["iteration"], event["stage"]) for event in events]
    first = ("generate", "score", "filter", "train", "choose_alpha", "score_heldout", "conclude")
    assert stages == [
        *(("iteration", 1, stage) for stage in first),
        *(("iteration", 2, stage) for stage in ("generate", "filter", "conclude")),
        *(("comparison", 0, stage) for stage in ("train", "score_heldout", "ground_again")),
    ]
    by_stage = {event["stage"]: event for event in events[:7]}
    assert (by_stage["score"]["done"], by_stage["score"]["total"], by_stage["score"]["reused"]) == (2, 2, 1)
    assert (by_stage["filter"]["kept"], by_stage["filter"]["kept_share"]) == (2, 0.5)
    assert (by_stage["choose_alpha"]["alpha"], len(by_stage["choose_alpha"]["tried"])) == (2.0, 2)
    assert (by_stage["score_heldout"]["aesthetic_base"], by_stage["score_heldout"]["aesthetic_tuned"]) == (2.5, 3.0)
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
        with pytest.raises(error), JournalWriter(journal) as writer:
            writer.write(_told(store)[0])
            raise error
        [event] = journal.events()
    assert (event["phase"], event["iteration"], event["stage"], event["reason"]) == ("iteration", 1, "stopped", error.__name__)


def test_all_lines_are_json_without_nan(tmp_path: Path) -> None:
    _shown(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_run_without_any_pair_shows_none(tmp_path: Path) -> None:
    state: State = states.without_advice()
    progress = _at(1, "regenerate", 2, 2, replace(state, iterations=()), tuple(state.iterations[0].samples))
    event = EventBuilder(RECIPE.shown).event(progress)
    assert event.shown == ()
    with RunProgress(Console(file=io.StringIO()), tmp_path, ArtifactStore(str(tmp_path / "artifacts")).get) as shown:
        shown.show(event)
    assert not (tmp_path / "first-pair.png").exists()


def test_events_of_any_method_are_shown_by_their_phase_and_iteration(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    pictures = [ShownPicture(caption=f"sketch {n}", digest=store.put(encode_png(np.full((64, 32, 3), n, np.uint8)))) for n in range(3)]
    told = [("setup", 0, "probe", ()), ("round", 1, "sketch", pictures), ("round", 2, "sketch", pictures[:1]), ("closing", 0, "none", ())]
    out = io.StringIO()
    with RunProgress(Console(file=out, width=200), tmp_path, store.get) as progress:
        for number, (phase, iteration, stage, shown) in enumerate(told):
            total = 0 if phase == "closing" else 1
            event = Event(
                number=number,
                time=number,
                phase=phase,
                iteration=iteration,
                stage=stage,
                done=total,
                total=total,
                reused=0,
                shown=tuple(shown),
            )
            progress.show(event)
    lines = [line.split(maxsplit=2)[2] for line in out.getvalue().splitlines() if "pair" not in line]
    assert lines == ["setup", "setup  probe 1/1", "round 1", "round 1  sketch 1/1", "round 2", "round 2  sketch 1/1"]
    assert "sketch 0" in out.getvalue()
    assert read_image(tmp_path / "first-pair.png").shape == (512, 3 * 256, 3)


def test_the_newest_event_of_every_stage_is_enough_to_show_a_run_that_is_under_way(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    told = _told(store)[:8]
    newest = {event.stage: event for event in told}
    out = io.StringIO()
    with RunProgress(Console(file=out, width=200), tmp_path, store.get) as progress:
        for event in sorted(newest.values(), key=lambda event: event.number):
            progress.show(event)
    for words in (
        "iteration 1  score 2/2  1 reused, aesthetic X 2.00, X' 4.00",
        "2 of 4 kept (50%)",
        "first pair",
        "choose_alpha 3/3  alpha 2",
    ):
        assert words in out.getvalue(), words
    assert max(len(event.model_dump_json()) for event in told) < 1000


def test_without_a_terminal_a_line_comes_now_and_again(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    out = io.StringIO()
    begun = Event(number=0, time=0, phase="iteration", iteration=1, stage="generate", done=1, total=2, reused=0)
    with RunProgress(Console(file=out, width=200), tmp_path, store.get, every=0.05) as progress:
        _until(out, "waiting for the first stage")
        progress.show(begun)
        _until(out, "iteration 1  generate 1/2")
    ended = out.getvalue()
    time.sleep(0.2)
    assert out.getvalue() == ended
    with RunProgress(Console(file=out, width=200, force_terminal=True), tmp_path, store.get, every=0.05):
        time.sleep(0.2)
    assert "waiting" not in out.getvalue().removeprefix(ended)


def _until(out: io.StringIO, words: str) -> None:
    deadline = time.monotonic() + 20
    while words not in out.getvalue():
        assert time.monotonic() < deadline, out.getvalue()
        time.sleep(0.01)
