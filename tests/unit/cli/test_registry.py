"""``sfumato models`` as a user meets it, on a run that was really gone through, with made-up answers and real adapters."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from orchestrator.runs.records import Record, Records, Weights
from services.registry.app import services
from sfumato.cli.main import app
from sfumato.errors import Conflict, InvalidInput, MissingWeights, NotFound, Unavailable
from sfumato.lora import adapter as algebra
from sfumato.lora.adapter import Adapter
from sfumato.registry.client import RegistryClient
from sfumato.runs.records import Outcome
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png
from sfumato.runtime.models.adapters import decode_adapter, encode_adapter
from sfumato.runtime.system import Member, System, process_started
from sfumato.runtime.tasks import Output, Task, canonical
from tests.unit.orchestrator import rehearsal
from tests.unit.orchestrator.rehearsal import HANDLERS, plan_of, rehearse, write_spec
from tests.unit.services.serving import served_at

MODELS = {part: hashlib.sha256(part.encode()).hexdigest() for part in ("generator", "understanding", "scorers", "judge")}


def _seeded(*content: object) -> Adapter:
    seed = int.from_bytes(hashlib.sha256(canonical(content)).digest()[:6], "big")
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 4, generator=generator), torch.randn(6, 2, generator=generator)
    return Adapter({"transformer_blocks.0.attn.to_q": (a, b)})


def _paint(task: Task, artifacts: ArtifactStore) -> Output:
    """As in the rehearsal: redder with advice, and with every iteration that is fused."""
    adapter = task.params["adapter"]
    rank = max(decode_adapter(artifacts.get(adapter)).ranks.values()) if adapter else 0
    files = {}
    for index, item in enumerate(task.items):
        colour = [min(255, 2 * rank + (8 if item["regions"] else 0)), item["seed"] % 251, rank % 251]
        files[f"{index}.png"] = encode_png(np.full((rehearsal.SIDE, rehearsal.SIDE, 3), colour, dtype=np.uint8))
        files[f"{index}.safetensors"] = canonical([item, task.params])
    return Output([None] * len(task.items), files)


def _train(task: Task, _: ArtifactStore) -> Output:
    values = [{"losses": [1.0, 0.5], "rank": 2, "diverged": ""} for _ in task.items]
    return Output(values, {f"{i}.safetensors": encode_adapter(_seeded(item, task.params)) for i, item in enumerate(task.items)})


def _average(task: Task, artifacts: ArtifactStore) -> Output:
    mean = algebra.mean([decode_adapter(artifacts.get(digest)) for digest in task.items])
    return Output({"rank": 2, "error": 0.0, "norm": 1.0}, {"adapter.safetensors": encode_adapter(mean)})


def _fuse(task: Task, artifacts: ArtifactStore) -> Output:
    stacked = algebra.stack([decode_adapter(artifacts.get(digest)) for digest in task.items], task.params["alphas"])
    return Output({"difference": 0.0}, {"adapter.safetensors": encode_adapter(stacked)})


@pytest.fixture(params=["local", "served"])
def place(request: pytest.FixtureRequest, run: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The registry is this folder's database, or a service on it."""
    if request.param == "local":
        yield
        return
    with served_at(services, ArtifactStore("runs/artifacts")) as address:
        monkeypatch.setenv("SFUMATO_REGISTRY_SERVER", address)
        yield


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run in ``runs/`` of the working folder; its id."""
    for kind, handler in {"generator.paint": _paint, "trainer.train": _train, "trainer.average": _average, "trainer.fuse": _fuse}.items():
        monkeypatch.setitem(HANDLERS, kind, handler)
    monkeypatch.chdir(tmp_path)
    spec = write_spec(tmp_path, stop="{max_iterations: 2, min_pairs: 1}", train="{pairs: 3}")
    plan = plan_of(spec)
    for part, model in plan.models.items():
        object.__setattr__(model, "version", MODELS[part])
    state, _ = rehearse(plan, ArtifactStore("runs/artifacts"))
    assert len(state.fused) == 2
    weights = {part: Weights(version=model.version, reference=model.reference) for part, model in plan.models.items()}
    inputs = {name: tuple(prompts) for name, prompts in plan.inputs.items()}
    records = Records(ArtifactStore("runs/artifacts"))
    records.begin("rehearsal-1", Record(spec=plan.spec.model_dump(mode="json"), inputs=inputs, models=weights))
    records.end("rehearsal-1", Outcome(state="finished"))
    return "rehearsal-1"


def models(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["models", *map(str, arguments)], catch_exceptions=False)


def said(*arguments: object) -> dict:
    return json.loads(models(*arguments, "--json").stdout)


def test_a_finished_run_is_registered_with_all_it_came_of(run: str, place: None) -> None:
    made = said("register", run, "--alias", "production")["versions"]
    assert [entry["aliases"] for entry in made] == [[], ["production"]]
    assert said("register", run)["versions"][0]["id"] == made[0]["id"]  # again: the same
    assert len(said("ls")["versions"]) == 3  # and the base model
    shown = said("show", "production")
    assert shown["base"]["id"] == MODELS["generator"] and "heldout_aesthetic" in shown["metrics"]
    graph = said("lineage", "production")
    kinds: dict[str, list[dict]] = {}
    for node in graph["nodes"]:
        kinds.setdefault(node["id"].partition(":")[0], []).append(node["content"])
    assert {len(kinds[kind]) for kind in ("run",)} == {1} and len(kinds["iteration"]) == 2 and len(kinds["version"]) == 3
    assert len(kinds["pair"]) == 6 and {prompt["text"] for prompt in kinds["prompt"]} <= {f"train picture {i}" for i in range(10)}
    (origin,) = kinds["run"]
    assert origin["id"] == run and origin["seeds"]["evaluate"] == 900 and origin["models"] == MODELS
    relations = {edge["relation"] for edge in graph["edges"]}
    assert {"made_by", "part_of", "follows", "adds_up", "mean_of", "trained_on", "asked_as", "picture_before", "latents_after"} <= relations
    assert "iteration" in models("lineage", "production", "--depth", 2).stdout


def test_aliases_are_promoted_and_rolled_back(run: str, place: None) -> None:
    first, second = (entry["id"] for entry in said("register", run, "--alias", "production")["versions"])
    assert "points at" in models("promote", second).stdout
    with pytest.raises(Conflict):
        models("promote", first, "--expected", first)
    assert first[:12] in models("promote", first, "--reason", "compare").stdout
    assert second[:12] in models("rollback").stdout
    with pytest.raises(InvalidInput, match="no earlier place"):
        models("rollback")
    assert "compare" in models("show", "production").stdout
    with pytest.raises(NotFound, match="models ls"):
        models("show", "nobody")


def test_collection_only_says_what_it_would_take(run: str, place: None) -> None:
    first, second = (entry["id"] for entry in said("register", run)["versions"])
    assert said("gc", "--days", 0)["versions"] == [said("ls")["versions"][2]["id"], first, second]
    assert "would be removed" in models("gc", "--days", 0).stdout
    assert said("gc", "--days", 0, "--remove")["removed"]
    assert said("ls")["versions"] == []
    assert len(said("register", run)["versions"]) == 2  # the run's own files were left alone


@pytest.mark.parametrize("break_it", ["unfinished", "cleared"])
def test_a_run_that_is_not_whole_is_not_registered(run: str, place: None, break_it: str) -> None:
    breaks: dict[str, tuple[Callable[[], object], type[Exception]]] = {
        "unfinished": (lambda: Records(ArtifactStore("runs/artifacts")).reopen(run, finished=True), InvalidInput),
        "cleared": (lambda: next(Path("runs/artifacts/manifests").rglob("*.json")).unlink(), MissingWeights),
    }
    act, error = breaks[break_it]
    act()
    with pytest.raises(error, match=f"--resume {run}"):
        models("register", run)


def test_a_system_that_is_up_here_is_asked_and_says_the_same_as_the_database(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version = said("register", run, "--alias", "production")["versions"][0]["id"]
    asked = [("ls",), ("ls", "--json"), ("ls", "--limit", 1), ("show", "production"), ("show", version, "--json"), ("lineage", version)]
    asked += [("lineage", "production", "--json"), ("lineage", "production", "--depth", 1), ("promote", "production")]
    alone = [models(*words).stdout for words in asked]
    with served_at(services, ArtifactStore("runs/artifacts")) as address:
        assert [models(*words, "--server", address).stdout for words in asked] == alone
        member = Member(service="registry", address=address, metrics="")
        pid = os.getpid()
        System(pid=pid, started=process_started(pid), bus="", members={"registry": member}).write(Path("runs"))
        assert [models(*words).stdout for words in asked] == alone
        assert [models(*words, "--local").stdout for words in asked] == alone
    with pytest.raises(Unavailable, match="sfumato up"):  # the system's file says that it is up: the database is not opened instead
        models("ls")
    Path("runs/registry.sqlite").rename("runs/gone.sqlite")
    assert "production" not in models("ls", "--local").stdout
    with pytest.raises(Unavailable, match="127.0.0.1:1"):
        models("ls", "--server", "127.0.0.1:1")


def test_an_adapter_goes_to_a_registry_with_a_store_of_its_own(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = ArtifactStore(str(tmp_path / "elsewhere"))
    with monkeypatch.context() as machine:
        machine.setenv("SFUMATO_ARTIFACTS", elsewhere.url)
        machine.setenv("SFUMATO_REGISTRY_URL", f"sqlite:///{tmp_path}/elsewhere.sqlite")
        with served_at(services, elsewhere) as address:
            machine.delenv("SFUMATO_ARTIFACTS")
            made = said("register", run, "--server", address)["versions"]
            (part,) = made[-1]["parts"]
            assert elsewhere.holds(part["adapter"]) and not Path("runs/registry.sqlite").exists()
            with RegistryClient(address) as client:
                assert client.adapter(part["adapter"]) == ArtifactStore("runs/artifacts").get(part["adapter"])
