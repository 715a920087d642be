"""The shipped understanding module in a real vLLM server, held against transformers on the same weights."""

import platform
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.grounding.engine import Backend, GroundingEngine, Query
from services.grounding.http_backend import HttpBackend
from services.grounding.local_backend import LocalBackend
from services.grounding.profiles import VISTA
from sfumato.advice import instruction
from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime import vlm
from sfumato.types import Image
from sfumato.vista.phrases import plain_prompt
from sfumato.vista.training.questions import refinement, yes_or_no
from sfumato.vista.weights import locate
from sfumato.vista.world import Scene, render

# Where `make setup` installs vLLM these tests run, and fail if it is missing; elsewhere there is no CPU build of it.
SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not SUPPORTED, reason="no vLLM for this platform"), pytest.mark.timeout(900)]
COUNT = 12


@pytest.fixture(scope="module")
def served() -> Iterator[vlm.VlmServer]:
    with vlm.serving(vlm.ServedModel(locate("understanding"), "vista")) as server:
        yield server


@pytest.fixture(scope="module")
def remote(served: vlm.VlmServer) -> Iterator[Backend]:
    backend = HttpBackend(served.url, "vista")
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def local() -> Backend:
    return LocalBackend(locate("understanding"))


@pytest.fixture(scope="module")
def pictures() -> list[tuple[Scene, Image, str]]:
    examples = [plain_prompt(random.Random(f"vllm:{index}")) for index in range(COUNT)]
    return [(scene, render(scene), prompt) for scene, prompt in examples]


@pytest.mark.parametrize("constrained", [False, True])
def test_greedy_advice_is_that_of_transformers(
    remote: Backend, local: Backend, pictures: list[tuple[Scene, Image, str]], constrained: bool
) -> None:
    schema = VISTA.answer_schema(64, 64) if constrained else None
    queries = [Query((image,), instruction(prompt), VISTA.answer_tokens, schema=schema) for _, image, prompt in pictures]
    assert [remote.answer(query) for query in queries] == [local.answer(query) for query in queries]


def test_regions_choices_and_questions_are_the_same(remote: Backend, local: Backend, pictures: list[tuple[Scene, Image, str]]) -> None:
    there, here = GroundingEngine(remote, VISTA), GroundingEngine(local, VISTA)
    images, prompts = [image for _, image, _ in pictures], [prompt for _, _, prompt in pictures]
    assert [g.regions for g in there.ground_all(images, prompts)] == [g.regions for g in here.ground_all(images, prompts)]
    rng = random.Random(2)
    for scene, image, _ in pictures:
        question, _ = yes_or_no(scene, rng)
        assert there.ask(image, question) == here.ask(image, question)
    for first, second in zip(images, images[1:], strict=False):
        assert there.compare(first, second) == here.compare(first, second)


def test_refinements_are_the_same(remote: Backend, local: Backend) -> None:
    queries = [Query((), refinement(random.Random(seed))[0], 60) for seed in range(COUNT)]
    assert [remote.answer(query) for query in queries] == [local.answer(query) for query in queries]


def test_a_damaged_model_ends_with_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Unavailable, match="vLLM ended"), vlm.serving(vlm.ServedModel(tmp_path, "vista")):
        pytest.fail("it should not have started")


def test_a_taken_port_is_said_so(served: vlm.VlmServer) -> None:
    port = int(served.url.rsplit(":", 1)[1])
    with pytest.raises(InvalidInput, match="port"), vlm.serving(vlm.ServedModel(locate("understanding"), "vista"), port=port):
        pytest.fail("it should not have started")
