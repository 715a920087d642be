import json
import random
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from sfumato.advice import CHOICE, DESCRIPTION, instruction
from sfumato.vista.phrases import vocabulary
from sfumato.vista.training import questions
from sfumato.vista.training.loop import Step
from sfumato.vista.training.reader import BEFORE, SPAN, text_positions
from sfumato.vista.training.understanding import UnderstandingTask
from sfumato.vista.understanding import CONTEXT, SIZE, build_tokenizer
from sfumato.vista.world import pixel_box

TOKENIZER = build_tokenizer([*vocabulary(), *questions.WORDS])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> UnderstandingTask:
    torch.set_num_threads(1)
    return UnderstandingTask(tmp_path_factory.mktemp("understanding"), pool=48, batch=4)


def step(number: int, share: float) -> Step:
    return Step(number, share, torch.Generator().manual_seed(number), random.Random(number))


@given(st.text(string.printable))
def test_no_text_is_lost_on_the_tokenizer_but_its_capitals(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text.lower()


def test_an_answer_takes_few_tokens() -> None:
    answer = [{"bbox": [12, 30, 64, 58], DESCRIPTION: "a majestic green tree with dappled light by day"}]
    assert len(TOKENIZER(json.dumps(answer, separators=(",", ":")))["input_ids"]) == 16


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_true_answers_name_every_plain_element_and_fit_the_context(seed: int) -> None:
    rng = random.Random(seed)
    scene = questions.mixed_scene(rng)
    question, answer = questions.grounding(scene, rng)
    plain = [list(pixel_box(e, SIZE)) for e in scene.elements if not e.beautiful]
    assert [entry["bbox"] for entry in json.loads(answer)] == plain
    assert len(TOKENIZER(question + answer)["input_ids"]) < CONTEXT / 2


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_clear_prompt_is_its_own_refinement_and_every_refinement_is_clear(seed: int) -> None:
    question, answer = questions.refinement(random.Random(seed))
    loose = {word for group in questions.LOOSE.values() for phrase in group for word in phrase.split()} - {"a", "some", "the", "an"}
    assert not loose & set(answer.replace(",", "").split())
    assert answer.split()[-1] in ("day", "daylight", "dusk", "sunset", "night")
    assert question.endswith(answer) or answer not in question


def test_the_training_forward_is_that_of_transformers(task: UnderstandingTask, tmp_path: Path) -> None:
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    task.export(task.model, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    model = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    reader = task._reader(torch.nn.ModuleDict({"vlm": model}))
    pictures = task.pool.pictures[:2]
    shown = [Pillow.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]

    def theirs(text: str, count: int) -> torch.Tensor:
        turn = [{"role": "user", "content": [{"type": "image"}] * count + [{"type": "text", "text": text}]}]
        inputs = processor(text=[processor.apply_chat_template(turn, tokenize=False)], images=shown[:count], return_tensors="pt")
        return model(**inputs).logits[0, -1]

    with torch.inference_mode():
        text = instruction("a red house, strange words and a lake at night")
        opening, positions = reader.opened(pictures[:1].float() / 255)
        ids = [reader.vision_end, *task._ids([text])[0], reader.turn_end]
        x = torch.cat([opening, reader.embed(torch.tensor([ids]))], 1)
        places = torch.cat([positions, text_positions(BEFORE + SPAN, len(ids), torch.device("cpu"))], 1)[:, None]
        ours = reader.logits(reader.layers(x, reader.rotation(places), None, 0, None))[0, -1]
        torch.testing.assert_close(ours, theirs(text, 1), atol=1e-5, rtol=1e-4)
        chosen, _ = task._choose(reader, pictures.float() / 255)
        torch.testing.assert_close(chosen[0], theirs(CHOICE, 2), atol=1e-5, rtol=1e-4)


def test_questions_about_one_picture_do_not_see_one_another(task: UnderstandingTask) -> None:
    scenes = task.pool.scenes[:1]
    alone, together = (task._sequences(scenes, random.Random(3), asked=asked) for asked in (0, 2))
    pictures = task.pool.pictures[:1].float() / 255
    with torch.inference_mode():
        reader = task._reader(task.model)
        one, labels, _ = task._read(task.model, reader, pictures, alone)
        three, _, _ = task._read(task.model, reader, pictures, together)
    torch.testing.assert_close(three[: len(labels)], one, atol=3e-2, rtol=3e-2)


def test_a_step_depends_on_its_number_alone_and_teaches(task: UnderstandingTask) -> None:
    def loss(number: int, share: float) -> float:
        for parameter in task.model.parameters():
            parameter.grad = None
        return task.backward(step(number, share))

    assert loss(7, 0.5) == loss(7, 0.5)
    assert loss(7, 0.5) != loss(8, 0.5)
    before = loss(9, 0.0)
    optimizers = task.optimizers()
    for number in range(12):
        loss(number, 0.0)
        for optimizer in optimizers:
            optimizer.step()
    assert loss(9, 0.0) < 0.9 * before
