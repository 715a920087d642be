"""Lineage, merging and garbage collection: what came of what, and that nothing of it is lost."""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from services.registry.database import Database
from services.registry.engine import Registry
from sfumato.errors import InvalidInput, NotFound
from sfumato.registry.records import Base, Edge, Lineage, Node, WeightedAdapter, version_id
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.tasks import Output, Task, perform
from tests.unit.services.registry.samples import BASE, TO_Q, adapter, register, tensors


def came_of(seed: int, *sources: Node) -> Lineage:
    own = f"version:{version_id(BASE.id, (WeightedAdapter(adapter(seed)[0]),))}"
    return Lineage(sources, tuple(Edge(own, "came_of", source.id) for source in sources))


def test_a_version_knows_its_base_its_adapters_and_what_it_is_told(registry: Registry) -> None:
    pair = Node.about("pair", seed=7, gain=1.5)
    version = register(registry, 1, lineage=came_of(1, pair))
    graph = registry.lineage(version.id)
    assert {node.kind: node.digest for node in graph.nodes} == {
        "version": version.id,
        "base": BASE.id,
        "adapter": adapter(1)[0],
        "pair": pair.digest,
    }
    assert pair in graph.nodes
    assert {edge.relation for edge in graph.edges} == {"based_on", "has", "came_of"}


def test_lineage_is_cut_at_a_depth(registry: Registry) -> None:
    prompt, pair = Node.about("prompt", text="a boat"), Node.about("pair", seed=7)
    told = came_of(1, pair)
    version = register(registry, 1, lineage=Lineage((*told.nodes, prompt), (*told.edges, Edge(pair.id, "painted_from", prompt.id))))
    assert prompt in registry.lineage(version.id).nodes
    assert prompt not in registry.lineage(version.id, depth=1).nodes
    assert registry.lineage(version.id, depth=0).edges == ()
    with pytest.raises(NotFound):
        registry.lineage("nobody")


def test_what_is_told_later_is_added(registry: Registry) -> None:
    register(registry, 1, lineage=came_of(1, Node.about("run", id="a")))
    version = register(registry, 1, lineage=came_of(1, Node.about("run", id="b")))
    assert sorted(node.content["id"] for node in registry.lineage(version.id).nodes if node.kind == "run") == ["a", "b"]


def test_a_lineage_that_cannot_be_is_refused(registry: Registry) -> None:
    one, two = Node.about("step", n=1), Node.about("step", n=2)
    circle = Lineage((one, two), (Edge(one.id, "of", two.id), Edge(two.id, "of", one.id)))
    wrong = [
        circle,
        Lineage((), (Edge(one.id, "of", two.id),)),
        Lineage((Node("step", "0" * 64, {"n": 1}),)),
        Lineage((Node("Step!", "0" * 64),)),
        Lineage((Node("step", "../x"),)),
        Lineage((one, two), (Edge(one.id, "of!", two.id),)),
    ]
    for lineage in wrong:
        with pytest.raises(InvalidInput, match="lineage|SHA-256"):
            register(registry, 1, lineage=lineage)
    assert registry.list().versions == ()
    with pytest.raises(InvalidInput, match="lineage"):
        Node.about("step", n=float("nan"))


def test_a_circle_through_what_is_there_already_is_refused(registry: Registry) -> None:
    first = register(registry, 1)
    second = register(registry, 2, lineage=Lineage((), (Edge(f"version:{_id(2)}", "came_of", f"version:{first.id}"),)))
    with pytest.raises(InvalidInput, match="circle"):
        register(registry, 1, lineage=Lineage((), (Edge(f"version:{first.id}", "came_of", f"version:{second.id}"),)))


def _id(seed: int) -> str:
    return version_id(BASE.id, (WeightedAdapter(adapter(seed)[0]),))


def _delta(data: bytes | dict[str, np.ndarray]) -> np.ndarray:
    content = load(data) if isinstance(data, bytes) else data
    return content[f"{TO_Q}.lora_B.weight"].astype(np.float64) @ content[f"{TO_Q}.lora_A.weight"].astype(np.float64)


def test_merging_adds_updates_up_and_says_so(registry: Registry) -> None:
    one, two = register(registry, 1, weight=0.5), register(registry, 2)
    stacked = registry.merge([(one.id, 1.0), (two.id, -2.0)], note="both")
    expected = 0.5 * _delta(tensors(1)) - 2 * _delta(tensors(2))
    np.testing.assert_allclose(_delta(registry.adapter(stacked.parts[0].adapter)), expected, rtol=1e-5, atol=1e-6)
    assert registry.merge([(one.id, 1.0), (two.id, -2.0)]) == stacked
    graph = registry.lineage(stacked.id)
    (step,) = (node for node in graph.nodes if node.kind == "merge")
    assert [source["version"] for source in step.content["sources"]] == [one.id, two.id]
    assert {one.id, two.id, stacked.id} <= {node.digest for node in graph.nodes if node.kind == "version"}
    assert adapter(1)[0] in {node.digest for node in graph.nodes if node.kind == "adapter"}
    assert "torch" in step.content["libraries"]
    mean = registry.merge([(one.id, 1.0), (two.id, 1.0)], "mean", rank=4)
    expected = (0.5 * _delta(tensors(1)) + _delta(tensors(2))) / 2
    np.testing.assert_allclose(_delta(registry.adapter(mean.parts[0].adapter)), expected, rtol=1e-5, atol=1e-5)


def test_a_merge_that_comes_back_to_where_it_came_from_is_what_is_there_already(registry: Registry) -> None:
    whole = registry.merge([(register(registry, 1).id, 1.0)])
    assert registry.merge([(whole.id, 1.0)]) == whole
    double = registry.merge([(whole.id, 2.0)])
    assert double.id != whole.id and registry.merge([(double.id, 0.5)]) == whole
    assert whole.id not in {edge.source for edge in registry.lineage(whole.id).edges}


def test_what_cannot_be_merged_is_refused(registry: Registry) -> None:
    one, other = register(registry, 1), registry.register(Base("f" * 64, "other"))
    for references in ([], [(one.id, 1.0), (other.id, 1.0)], [(one.id, float("inf"))]):
        with pytest.raises(InvalidInput):
            registry.merge(references)
    with pytest.raises(InvalidInput, match="how"):
        registry.merge([(one.id, 1.0)], "product")  # pyright: ignore[reportArgumentType]


def test_collection_takes_what_nothing_reaches_and_says_first_what_it_would_take(registry: Registry, store: ArtifactStore) -> None:
    parent, lost = register(registry, 1), register(registry, 2, lineage=came_of(2, Node.about("run", id="x")))
    child = register(registry, 3, lineage=Lineage((), (Edge(f"version:{_id(3)}", "came_of", f"version:{parent.id}"),)))
    registry.set_alias("production", child.id, expected="")
    assert registry.collect().versions == ()  # all are new
    found = registry.collect(older_than=0)
    assert (found.versions, found.adapters, found.bytes) == ((lost.id,), (adapter(2)[0],), len(adapter(2)[1]))
    assert registry.get(lost.id) == lost
    assert registry.collect(older_than=0, dry_run=False) == found
    with pytest.raises(NotFound):
        registry.get(lost.id)
    assert not store.holds(adapter(2)[0])
    assert registry.get(parent.id) == parent and store.holds(adapter(1)[0])
    assert registry.events()[-1].subject == lost.id and registry.events()[-1].kind == "collected"
    assert registry.collect(older_than=0) == type(found)((), (), (), 0)
    assert register(registry, 2).id == lost.id  # it may come again


def test_what_an_alias_once_pointed_at_stays_for_a_rollback(registry: Registry) -> None:
    one, two = register(registry, 1).id, register(registry, 2).id
    registry.set_alias("production", one, expected="")
    registry.set_alias("production", two, expected=one)
    registry.collect(older_than=0, dry_run=False)
    assert registry.rollback("production", expected=two).version == one


def test_files_of_a_run_stay(registry: Registry, store: ArtifactStore) -> None:
    digest, data = adapter(1)
    task = Task(stage="s", kind="trainer.train", items=(), params={}, model="m", model_reference="")
    perform(task, lambda _, __: Output([], {"0.safetensors": data}), store, {})
    register(registry, 1)
    found = registry.collect(older_than=0, dry_run=False)
    assert (found.adapters, found.bytes, store.holds(digest)) == ((digest,), 0, True)


@contextmanager
def fresh(folder: Path, template: Path) -> Iterator[tuple[Registry, ArtifactStore]]:
    store = ArtifactStore(str(folder))
    shutil.copy(template, folder / "r.sqlite")
    with closing(Registry(Database(f"sqlite:///{folder}/r.sqlite"), store)) as registry:
        yield registry, store


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_collection_never_takes_what_an_alias_or_lineage_reaches(
    tmp_path_factory: pytest.TempPathFactory, template: Path, data: st.DataObject
) -> None:
    with fresh(tmp_path_factory.mktemp("gc"), template) as (registry, store):
        count = data.draw(st.integers(1, 6))
        parents: dict[int, set[int]] = {}
        for seed in range(count):
            parents[seed] = data.draw(st.sets(st.integers(0, seed - 1), max_size=2)) if seed else set()
            own = f"version:{_id(seed)}"
            register(registry, seed, lineage=Lineage((), tuple(Edge(own, "came_of", f"version:{_id(p)}") for p in sorted(parents[seed]))))
        pointed = data.draw(st.lists(st.integers(0, count - 1), max_size=2, unique=True))
        at = ""
        for seed in pointed:
            registry.set_alias("production", _id(seed), expected=at)
            at = _id(seed)
        reached, front = set(pointed), set(pointed)
        while front:  # the definition, by hand
            front = {parent for seed in front for parent in parents[seed]} - reached
            reached |= front
        registry.collect(older_than=0, dry_run=False)
        assert {version.id for version in registry.list().versions} == {_id(seed) for seed in reached}
        assert {seed for seed in range(count) if store.holds(adapter(seed)[0])} == reached
        for seed in reached:
            assert {node.digest for node in registry.lineage(_id(seed)).nodes if node.kind == "version"} <= {_id(s) for s in reached}
