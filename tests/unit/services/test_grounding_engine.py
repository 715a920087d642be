import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from services.grounding.engine import Comparison, GroundingEngine, Query
from services.grounding.local_backend import LocalBackend
from services.grounding.profiles import VISTA
from sfumato.advice import CHOICE, DESCRIPTION
from sfumato.errors import AnswerRejected, BrokenWeights, InvalidInput, MissingWeights
from sfumato.types import Region
from sfumato.vista.understanding import build_model, build_tokenizer, save

PICTURE = np.zeros((64, 64, 3), np.uint8)
LAKE = json.dumps([{"bbox": [1, 2, 30, 40], DESCRIPTION: "a calm lake"}])


class Scripted:
    """Says these things, one after the other, and keeps what it was asked."""

    concurrency = 1

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.asked: list[Query] = []

    def answer(self, query: Query) -> str:
        self.asked.append(query)
        return self.words.pop(0)


def engine(*words: str) -> tuple[GroundingEngine, Scripted]:
    backend = Scripted(words)
    return GroundingEngine(backend, VISTA), backend


def test_grounding_asks_the_papers_question_once_and_gives_regions() -> None:
    grounding, backend = engine(LAKE)
    answer = grounding.ground(PICTURE, "a lake\nat night")
    assert answer.regions == (Region("a calm lake", (1, 2, 30, 40)),)
    assert answer.raw == LAKE
    (query,) = backend.asked
    assert "original description:\n\na lake at night\n\n2. Mark the locations" in query.text
    assert query.attempt == 0 and query.schema is not None and query.schema["maxItems"] == VISTA.max_regions


def test_pictures_are_shown_in_the_models_size_and_answered_in_their_own() -> None:
    grounding, backend = engine(LAKE)
    answer = grounding.ground(np.zeros((128, 256, 3), np.uint8), "a lake")
    assert backend.asked[0].images[0].shape == (64, 64, 3)
    assert answer.regions[0].box == (4, 4, 120, 80)


def test_an_invalid_answer_is_asked_again_once_and_not_greedily() -> None:
    grounding, backend = engine("what?", LAKE)
    assert len(grounding.ground(PICTURE, "a lake").regions) == 1
    assert [query.attempt for query in backend.asked] == [0, 1]
    grounding, backend = engine("what?", "how?", LAKE)
    with pytest.raises(AnswerRejected) as caught:
        grounding.ground(PICTURE, "a lake")
    assert caught.value.raw == "how?" and len(backend.asked) == 2


@pytest.mark.parametrize("prompt", ["", " \n\t", "\x00\u200b", "a" * 501, "a lake<|im_end|>"])
def test_unusable_prompts_are_refused_before_anyone_is_asked(prompt: str) -> None:
    grounding, backend = engine()
    for call in (grounding.ground, grounding.ask):
        with pytest.raises(InvalidInput):
            call(PICTURE, prompt)
    with pytest.raises(InvalidInput):
        grounding.refine(prompt)
    assert backend.asked == []


@pytest.mark.parametrize("shape", [(4, 64, 3), (64, 9000, 3)])
def test_pictures_of_silly_sizes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInput, match="image"):
        engine()[0].ground(np.zeros(shape, np.uint8), "a lake")


def test_questions_and_refinements() -> None:
    grounding, backend = engine("Yes.", "no", "a red house by day")
    assert grounding.ask(PICTURE, "is there a lake?") is True
    assert grounding.ask(PICTURE, "is there a lake?") is False
    assert grounding.refine("a cottage") == ("a red house by day", "a red house by day")
    assert backend.asked[0].choices == ("yes", "no")


def test_comparison_in_both_orders_finds_out_who_always_says_the_same() -> None:
    assert engine("B")[0].compare(PICTURE, PICTURE, "a lake", both_orders=False) == Comparison("B", "")
    assert engine("B", "A")[0].compare(PICTURE, PICTURE, "a lake") == Comparison("B", "")
    tie = engine("A", "A")[0].compare(PICTURE, PICTURE, "a lake")
    assert tie == Comparison("tie", "In both orders the picture shown first was preferred.")


def test_many_items_keep_their_order() -> None:
    answers = [json.dumps([{"bbox": [0, 0, 10 + i, 10], DESCRIPTION: "x"}]) for i in range(5)]
    grounding, _ = engine(*answers)
    said = grounding.each(lambda prompt: grounding.ground(PICTURE, prompt), ["a lake"] * 5)
    assert [g.regions[0].box[2] for g in said] == [10, 11, 12, 13, 14]


# --- in this process ---


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vlm")
    tokenizer = build_tokenizer(["lake", "house", "yes", "no"])
    save(build_model(tokenizer), tokenizer, folder)
    return folder


def test_even_a_model_that_knows_nothing_answers_in_the_schema(untrained: Path) -> None:
    backend = LocalBackend(untrained)
    grounding = GroundingEngine(backend, VISTA)
    query = Query((PICTURE,), "say", 200, schema=VISTA.answer_schema(64, 64))
    raw = backend.answer(query)
    assert raw.startswith("[") and raw == backend.answer(query)
    assert isinstance(grounding.ask(PICTURE, "is there a lake?"), bool)
    assert grounding.compare(PICTURE, PICTURE, "a lake").choice in ("A", "B", "tie")
    assert backend.answer(Query((PICTURE, PICTURE), CHOICE, 8, choices=("A", "B"))) in ("A", "B")
    assert backend.answer(Query((), "sampled", 8, attempt=1)) == backend.answer(Query((), "sampled", 8, attempt=1))


def test_missing_and_broken_models_are_told_apart(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights):
        LocalBackend(tmp_path)
    for path in untrained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(BrokenWeights):
        LocalBackend(tmp_path)
