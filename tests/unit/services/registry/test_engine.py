"""Versions, aliases, events: the same on SQLite and PostgreSQL."""

import asyncio
import shutil
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.registry.database import Database
from services.registry.engine import Registry
from services.registry.watching import Watching
from sfumato.errors import Conflict, InvalidInput, MissingWeights, NotFound
from sfumato.registry.records import Base, WeightedAdapter, version_id
from sfumato.runtime.artifacts import ArtifactStore
from tests.unit.services.registry.samples import BASE, TO_Q, adapter, register


def test_a_version_comes_back_as_it_was_registered(registry: Registry) -> None:
    version = register(registry, 2, 1, weight=0.5, metrics={"aesthetic": 5.5}, note="the first")
    assert version.parts == (WeightedAdapter(adapter(2)[0], 0.5), WeightedAdapter(adapter(1)[0], 0.5))
    assert (version.base, version.metrics, version.note, version.aliases) == (BASE, {"aesthetic": 5.5}, "the first", ())
    assert registry.get(version.id) == registry.get(version.id[:6]) == version
    assert registry.adapter(adapter(1)[0]) == adapter(1)[1]


def test_the_same_content_is_the_same_version_and_stays_as_it_first_was(registry: Registry) -> None:
    first = register(registry, 1, note="one")
    assert register(registry, 1, note="two") == first
    assert [event.kind for event in registry.events()] == ["registered"]


def test_another_order_weight_or_base_is_another_version(registry: Registry) -> None:
    one = [register(registry, 1, 2), register(registry, 2, 1), register(registry, 1), register(registry)]
    one.append(register(registry, 1, 2, weight=2.0))
    assert len({version.id for version in one}) == 5
    assert one[0].id == version_id(BASE.id, one[0].parts)


def test_an_adapter_that_is_in_the_store_need_not_be_sent(registry: Registry, store: ArtifactStore) -> None:
    digest, data = adapter(3)
    with pytest.raises(MissingWeights):
        registry.register(BASE, [WeightedAdapter(digest)])
    store.put(data)
    assert registry.register(BASE, [WeightedAdapter(digest)]).parts == (WeightedAdapter(digest),)


def test_nothing_is_kept_of_what_is_refused(registry: Registry, store: ArtifactStore) -> None:
    other = Base("f" * 64, "other", {TO_Q: [5, 4]})
    digest, data = adapter(1)
    with pytest.raises(InvalidInput, match="another model"):
        registry.register(other, [WeightedAdapter(digest)], files={digest: data})
    assert registry.list().versions == () and registry.events() == () and not store.holds(digest)


def test_what_was_once_told_of_a_base_is_held_against_later_adapters(registry: Registry) -> None:
    registry.register(Base(BASE.id, "tiny"))
    registry.register(Base(BASE.id, "tiny", {TO_Q: [6, 4]}))
    digest, data = adapter(1)
    with pytest.raises(InvalidInput, match="has no linear"):
        registry.register(Base(BASE.id, "tiny"), [WeightedAdapter(digest)], files={digest: data})
    with pytest.raises(InvalidInput, match="differ from the registered ones"):
        registry.register(BASE)


@pytest.mark.parametrize(
    ("base", "parts"),
    [
        (Base("xyz", "x"), []),
        (Base(f"{'a' * 64}\n", "x"), []),
        (Base("a" * 64, "x\0"), []),
        (Base("a" * 64, "x" * 3000), []),
        (Base("a" * 64, "x"), [WeightedAdapter("../../etc/passwd")]),
        (Base("a" * 64, "x"), [WeightedAdapter("b" * 64, float("nan"))]),
        (Base("a" * 64, "x"), [WeightedAdapter("b" * 64)] * 65),
    ],
)
def test_fields_that_cannot_be_used_are_named(registry: Registry, base: Base, parts: list[WeightedAdapter]) -> None:
    with pytest.raises(InvalidInput):
        registry.register(base, parts)


@pytest.mark.parametrize("reference", ["", "nobody", "000000", "%", "_" * 64, "a\0b", "x" * 5000, "'; DROP TABLE versions; --"])
def test_a_name_of_nothing_is_not_found(registry: Registry, reference: str) -> None:
    register(registry, 1)
    with pytest.raises(NotFound):
        registry.resolve(reference)


def test_the_list_is_cut_into_pages_newest_first(registry: Registry) -> None:
    made = [register(registry, seed).id for seed in range(5)]
    first = registry.list(limit=2)
    second = registry.list(limit=2, following=first.following)
    register(registry, 9)  # what comes meanwhile moves nothing
    third = registry.list(limit=2, following=second.following)
    assert [version.id for page in (first, second, third) for version in page.versions] == made[::-1]
    assert (third.following, registry.list(base="f" * 64).versions) == (0, ())
    for limit, following in ((0, 0), (501, 0), (50, -1)):
        with pytest.raises(InvalidInput):
            registry.list(limit=limit, following=following)


def test_an_alias_moves_only_from_where_it_is_expected(registry: Registry) -> None:
    one, two = register(registry, 1).id, register(registry, 2).id
    registry.set_alias("production", one, expected="", reason="it begins")
    for expected in ("", two):
        with pytest.raises(Conflict, match="not as expected"):
            registry.set_alias("production", two, expected=expected)
    with pytest.raises(Conflict, match="does not exist"):
        registry.set_alias("canary", two, expected=one)
    registry.set_alias("production", two[:8], expected=one)
    assert registry.resolve("production") == two
    assert registry.get(two).aliases == ("production",)
    assert registry.aliases() == {"production": two}
    assert [(move.revision, move.previous, move.version) for move in registry.history("production")] == [(1, "", one), (2, one, two)]


@pytest.mark.parametrize("name", ["", "Production", "a b", "../x", "decade", "1st", "x" * 64, "é"])
def test_a_name_that_could_be_an_id_or_a_path_is_no_alias(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidInput):
        registry.set_alias(name, register(registry, 1).id, expected="")


def test_rollbacks_go_further_and_further_back(registry: Registry) -> None:
    a, b, c = (register(registry, seed).id for seed in range(3))
    for before, after in pairwise(["", a, b, c]):
        registry.set_alias("production", after, expected=before)
    assert registry.rollback("production", expected=c).version == b
    assert registry.rollback("production", expected=b).version == a
    with pytest.raises(InvalidInput, match="no earlier place"):
        registry.rollback("production", expected=a)
    registry.set_alias("production", c, expected=a)
    with pytest.raises(Conflict):
        registry.rollback("production", expected=a)
    assert registry.rollback("production", expected=c, reason="it is too dark").version == a
    assert registry.history("production")[-1].reason == "it is too dark"
    with pytest.raises(NotFound):
        registry.rollback("canary", expected=a)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 2) | st.none(), max_size=10))
def test_rollback_undoes_moves_like_a_stack(tmp_path_factory: pytest.TempPathFactory, template: Path, steps: list[int | None]) -> None:
    folder: Path = tmp_path_factory.mktemp("stack")
    shutil.copy(template, folder / "r.sqlite")
    with closing(Registry(Database(f"sqlite:///{folder}/r.sqlite"), ArtifactStore(str(folder)))) as registry:
        ids = [register(registry, seed).id for seed in range(3)]
        stack = [""]
        for step in steps:
            if step is not None:
                registry.set_alias("x", ids[step], expected=stack[-1])
                stack += [ids[step]] if stack[-1] != ids[step] else []
            elif len(stack) > 2:
                registry.rollback("x", expected=stack.pop())
            assert registry.aliases().get("x", "") == stack[-1]


def test_watching_misses_nothing_and_goes_on_where_it_was(registry: Registry) -> None:
    async def watched(after: int, count: int) -> list[tuple[int, str]]:
        found = []
        async for event in Watching(lambda: registry, 0.01).events(after):
            found.append((event.number, event.kind))
            if len(found) == count:
                break
        return found

    async def both() -> list[tuple[int, str]]:
        watching = asyncio.create_task(watched(0, 3))
        version = await asyncio.to_thread(register, registry, 1)
        await asyncio.to_thread(register, registry, 2)
        await asyncio.to_thread(registry.set_alias, "production", version.id, expected="")
        return await watching

    assert asyncio.run(both()) == [(1, "registered"), (2, "registered"), (3, "alias")]
    assert asyncio.run(watched(2, 1)) == [(3, "alias")]
