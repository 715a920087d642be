"""A run's journal: appended over sessions, whole after a crash, its seconds summed by iteration."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sfumato.runtime.journal import RunJournal


def test_lines_are_on_disk_as_soon_as_they_are_written(tmp_path: Path) -> None:
    with RunJournal(tmp_path / "metrics.jsonl") as journal:
        journal.write("iteration", 1, "train", done=2, total=2)
        [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert (event["phase"], event["iteration"], event["stage"], event["done"], event["total"]) == ("iteration", 1, "train", 2, 2)
    assert event["seconds"] >= 0 and event["time"] > 0


def test_a_second_session_appends_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for stage in ("generate", "train"):
        with RunJournal(path) as journal:
            journal.write("iteration", 1, stage)
    assert [event["stage"] for event in journal.events()] == ["generate", "train"]


def test_a_line_cut_by_a_crash_is_ignored_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RunJournal(path) as journal:
        journal.write("iteration", 1, "generate")
    path.write_text(path.read_text() + '{"time": 1.0, "iterat')
    with RunJournal(path) as journal:
        journal.write("iteration", 1, "train")
    assert [event["stage"] for event in journal.events()] == ["generate", "train"]


@given(spent=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000)), max_size=20))
def test_seconds_are_summed_by_iteration(tmp_path_factory, spent: list[tuple[int, int]]) -> None:  # noqa: ANN001
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    lines = [{"time": 0.0, "iteration": iteration, "stage": "x", "seconds": seconds} for iteration, seconds in spent]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert RunJournal(path).seconds() == {
        iteration: sum(seconds for of, seconds in spent if of == iteration) for iteration in {of for of, _ in spent}
    }
