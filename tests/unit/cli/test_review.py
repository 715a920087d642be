"""`sfumato review` as a person meets it: a real process, a real store, answers on its input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from orchestrator.engine.engine import Engine
from orchestrator.engine.stages import Waiting
from orchestrator.recipes.artaug import RECIPE
from orchestrator.recipes.artaug.state import KEPT, ArtAugPlan, State
from orchestrator.runs.records import Record, Records, Weights
from orchestrator.runs.reviewing import store_answer, waiting_questions
from sfumato.cli.pictures import half_blocks
from sfumato.drawing import COLOURS, side_by_side
from sfumato.runs.records import Answer
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.types import Region
from tests.unit.orchestrator.rehearsal import InPlace, plan_of, rehearse, write_spec

ROOT = Path(__file__).parents[3]
RUN = "rehearsal-0123456789"
PAIRS = 10


def _begin(folder: Path, review: str, **sections: str) -> tuple[ArtAugPlan, ArtifactStore]:
    """A run that was started, its record written."""
    plan = plan_of(write_spec(folder, filter=f"{{review: {review}}}", **({"stop": "{max_iterations: 1, min_pairs: 1}"} | sections)))
    artifacts = ArtifactStore(str(folder / "runs" / "artifacts"))
    models = {part: Weights(version=model.version, reference=model.reference) for part, model in plan.models.items()}
    inputs = {name: tuple(lines) for name, lines in plan.inputs.items()}
    Records(artifacts).begin(RUN, Record(spec=plan.spec.model_dump(mode="json"), inputs=inputs, models=models))
    return plan, artifacts


def _to_the_review(plan: ArtAugPlan, artifacts: ArtifactStore) -> None:
    with pytest.raises(Waiting) as stopped:
        rehearse(plan, artifacts)
    assert stopped.value.tasks


def _review(folder: Path, *arguments: str, said: str = "", colours: bool = False) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sfumato.cli.main", "review", RUN, "--runs", str(folder / "runs"), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "COLUMNS": "100", "LINES": "40"}
    environment |= {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"} if colours else {"TERM": "dumb"}
    return subprocess.run(line, input=said, capture_output=True, encoding="utf-8", env=environment, timeout=120, check=False, cwd=folder)


def _waiting(folder: Path) -> list[dict]:
    return json.loads(_review(folder, "--json").stdout)


def _verdicts(state: State) -> list[str]:
    return [sample.verdict for sample in state.iterations[0].samples]


def test_without_a_review_there_are_no_questions(tmp_path: Path) -> None:
    plan, artifacts = _begin(tmp_path, "none")
    state, tasks = rehearse(plan, artifacts)
    assert _verdicts(state) == [KEPT] * PAIRS
    assert not [task for task in tasks if task.stage in ("vlm_review", "human_review")]
    result = _review(tmp_path)
    assert (result.returncode, "has no human review" in result.stderr) == (2, True), result.stderr


def test_a_vlm_refuses_for_itself(tmp_path: Path) -> None:
    (tmp_path / "mixed.txt").write_text("a lake\nan ugly house\na tree\n")
    plan, artifacts = _begin(tmp_path, "vlm", prompts="{file: mixed.txt, count: 3, seed: 0}")
    state, _ = rehearse(plan, artifacts)
    assert _verdicts(state) == [KEPT, "vlm_review", KEPT]
    assert state.iterations[0].samples[1].reason == "both are ugly"


def test_a_person_answers_pair_by_pair_and_the_run_continues(tmp_path: Path) -> None:
    plan, artifacts = _begin(tmp_path, "human")
    _to_the_review(plan, artifacts)
    first = _review(tmp_path, said="y\nn too dark\nwhat?\nn\n\ns\nq\n")
    assert first.returncode == 0, first.stderr
    for words in ("1 of 10", "train picture 0", "a glowing sky", "aesthetic 4.00 -> 4.12 (+0.12)", "y accepts", "7 questions still wait"):
        assert words in first.stdout
    second = _review(tmp_path, said="y\n" * 7)
    assert "1 of 7" in second.stdout
    assert f"sfumato run --resume {RUN}" in second.stdout
    state, _ = rehearse(plan, artifacts)
    assert _verdicts(state) == [KEPT, "human_review", "human_review", *[KEPT] * 7]
    assert [sample.reason for sample in state.iterations[0].samples[1:3]] == ["too dark", ""]
    assert len(state.iterations[0].attempt.pairs if state.iterations[0].attempt else ()) == 8


def test_after_the_vlm_a_person_sees_only_what_it_let_through(tmp_path: Path) -> None:
    (tmp_path / "mixed.txt").write_text("a lake\nan ugly house\na tree\n")
    plan, artifacts = _begin(tmp_path, "vlm+human", prompts="{file: mixed.txt, count: 3, seed: 0}")
    _to_the_review(plan, artifacts)
    waiting = _waiting(tmp_path)
    assert [question["asked"] for question in waiting] == ["a lake", "a tree"]
    assert waiting[0]["prompt"] == "a lake, exactly"
    assert waiting[0].keys() == {"id", "phase", "iteration", "prompt", "asked", "seed", "pictures"}
    before, after = waiting[0]["pictures"]
    assert before.keys() == after.keys() == {"caption", "digest", "regions", "scores"}
    assert (len(before["regions"]), len(after["regions"])) == (2, 0)
    assert before["scores"].keys() == after["scores"].keys() == {"clip", "aesthetic"}
    result = _review(tmp_path, "--accept", waiting[0]["id"][:12], "--reject", waiting[1]["id"][:12], "--reason", "two moons")
    assert (result.returncode, "No question waits" in result.stdout) == (0, True), result.stderr
    state, _ = rehearse(plan, artifacts)
    assert _verdicts(state) == [KEPT, "vlm_review", "human_review"]
    assert state.iterations[0].samples[2].reason == "two moons"


def test_every_iteration_asks_its_own_questions(tmp_path: Path) -> None:
    plan, artifacts = _begin(tmp_path, "human", stop="{max_iterations: 2, min_pairs: 1}")
    _to_the_review(plan, artifacts)
    assert _review(tmp_path, said="y\n" * PAIRS).returncode == 0
    assert _waiting(tmp_path) == []  # answered, and the run has not gone on yet
    _to_the_review(plan, artifacts)
    assert {(question["phase"], question["iteration"]) for question in _waiting(tmp_path)} == {("iteration", 2)}


def test_a_run_that_has_not_come_so_far_says_so(tmp_path: Path) -> None:
    _begin(tmp_path, "human")
    result = _review(tmp_path)
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert "has not reached its review yet" in result.stderr
    assert f"sfumato run --resume {RUN}" in result.stderr


def test_the_end_of_the_input_ends_it_and_loses_nothing(tmp_path: Path) -> None:
    plan, artifacts = _begin(tmp_path, "human")
    _to_the_review(plan, artifacts)
    assert "9 questions still wait" in _review(tmp_path, said="y\n").stdout


@pytest.mark.parametrize("arguments", [("--accept", "zz"), ("--accept", ""), ("--reject", "zz")])
def test_an_id_that_names_no_question_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    plan, artifacts = _begin(tmp_path, "human")
    _to_the_review(plan, artifacts)
    result = _review(tmp_path, *arguments)
    assert (result.returncode, "no waiting question" in result.stderr) == (2, True), result.stderr
    assert len(_waiting(tmp_path)) == PAIRS


def test_pairs_can_be_written_for_a_viewer(tmp_path: Path) -> None:
    plan, artifacts = _begin(tmp_path, "human")
    _to_the_review(plan, artifacts)
    result = _review(tmp_path, "--pictures", str(tmp_path / "pairs"), "--json")
    waiting = json.loads(result.stdout)
    assert [Path(question["picture"]).is_file() for question in waiting] == [True] * PAIRS
    assert all(question["id"].startswith(Path(question["picture"]).stem.split("-")[1]) for question in waiting)


def test_a_terminal_with_colours_shows_both_pictures(tmp_path: Path) -> None:
    plan, artifacts = _begin(tmp_path, "human")
    _to_the_review(plan, artifacts)
    shown = _review(tmp_path, said="q\n", colours=True).stdout
    assert shown.count("▀") > 2 * 20 * 10
    assert "38;2;255;59;48" in shown  # the first region's edge


def test_pictures_lie_side_by_side_with_the_edges_on_the_left_one() -> None:
    before, after = (np.full((8, 8, 3), value, dtype=np.uint8) for value in (0, 200))
    console = Console(width=19, color_system="truecolor", force_terminal=True, legacy_windows=False)
    rows = console.render_lines(half_blocks([(before, [Region("x", (2, 0, 6, 8))]), (after, [])], 19, 20))
    assert len(rows) == 4  # 8 pixels, two in a character
    cells = [(segment.text, segment.style.color.get_truecolor()) for segment in rows[1] if segment.style and segment.style.color]
    colours = [tuple(colour) for text, colour in cells for _ in text]
    red = tuple(int(COLOURS[0][at : at + 2], 16) for at in (1, 3, 5))
    assert colours == [(0, 0, 0)] * 2 + [red] + [(0, 0, 0)] * 2 + [red] + [(0, 0, 0)] * 2 + [(200, 200, 200)] * 8


def test_pictures_of_different_heights_are_one_image_with_the_advice_below() -> None:
    low, high = np.zeros((256, 512, 3), np.uint8), np.zeros((512, 256, 3), np.uint8)
    page = side_by_side([(low, [Region("a halo", (0, 0, 8, 8))]), (high, []), (low, [])])
    assert page.shape == (512, 512 + 256 + 512, 3)
    assert (page[512 - 128 :, :512] == 255).all() and (page[256:, 768:] == 255).all()  # white below the low ones
    assert (page[256:274, :512] != 255).any()  # the advice in words


def test_an_answer_that_is_there_already_stays(tmp_path: Path) -> None:
    plan, artifacts = _begin(tmp_path, "human")
    _to_the_review(plan, artifacts)
    task, question = waiting_questions(RECIPE, plan, RUN, artifacts)[0]
    store_answer(task, artifacts, False, "blurred")
    assert store_answer(task, artifacts, True) == Answer(question.id, False, "blurred")
    with pytest.raises(Waiting) as stopped:
        Engine(plan, plan.spec.batch, InPlace(artifacts), artifacts, lambda _: None).run(RECIPE.stages, RECIPE.start(plan))
    assert len(stopped.value.tasks) == PAIRS - 1
