"""The catalog with the registry's real service and the real engine: versions change under load, and bad ones stay out."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from services.inference.models.catalog import Catalog
from services.inference.models.golden import GoldenCheck, GoldenPrompts, ScoringClient, read_golden
from services.inference.painting.engine import InferenceEngine, PaintRequest
from services.scoring.app import services as scoring_services
from sfumato.errors import Busy, InvalidInput, NotFound, Unavailable
from sfumato.registry.client import RegistryClient
from sfumato.registry.records import Base, WeightedAdapter
from sfumato.types import Image
from tests.unit.services.inference.models.vista_registry import ASKED, House, same, served, until
from tests.unit.services.registry.servers import free_port
from tests.unit.services.serving import served_at

REQUESTS, SWAPS, CLIENTS = 510, 5, 8


async def asked(catalog: Catalog, engine: InferenceEngine, model: str = "vista") -> tuple[str, Image]:
    async with catalog.lease(model) as lease:
        painted = await engine.paint(PaintRequest(ASKED), lease.version, lease.extras)
        assert painted.version == lease.version
        return lease.version, painted.image


def test_under_steady_load_five_swaps_fail_no_request_and_each_is_of_one_version(house: House, registry: RegistryClient) -> None:
    versions = [house.register(registry, seed) for seed in range(SWAPS + 1)]
    registry.set_alias("production", versions[0], expected="")
    answers: list[tuple[str, Image]] = []

    async def whole() -> None:
        async with house.catalog() as (catalog, engine):

            async def client() -> None:
                while len(answers) < REQUESTS or served(catalog) != versions[-1]:
                    answers.append(await asked(catalog, engine))

            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(client())
                for swap, (before, after) in enumerate(zip(versions, versions[1:], strict=False), 1):
                    share = swap * REQUESTS // (SWAPS + 1)
                    await until(lambda share=share: len(answers) >= share)
                    await asyncio.to_thread(registry.set_alias, "production", after, expected=before)
                    await until(lambda after=after: served(catalog) == after)
            await until(lambda: engine.versions == (versions[-1],))  # every old one went with its last lease

    asyncio.run(whole())
    assert len(answers) >= REQUESTS
    order = [version for version, _ in answers]
    assert set(order) == set(versions) and min(Counter(order).values()) >= CLIENTS
    expected = {version: house.picture(version) for version in versions}
    for version, image in answers:
        assert [other for other in versions if same(image, expected[other])] == [version]


def test_a_bad_version_is_refused_the_old_one_stays_and_a_rollback_is_a_swap(house: House, registry: RegistryClient) -> None:
    """Refused: finite weights that paint what is not finite, and pictures that score worse than the registry recorded."""
    with served_at(scoring_services) as address:
        scores = ScoringClient(address)
        golden = GoldenPrompts(read_golden()[:4], steps=4)

        async def measured() -> dict[str, float]:
            async with house.catalog(golden=golden) as (_, engine):

                async def paint(request, version: str) -> Image:
                    return (await engine.paint(PaintRequest(request), version)).image

                check = GoldenCheck(paint, engine.limits, golden, scores)
                return dict((await check(registry.get("production"))).scores)

        base = house.register(registry, 0)
        registry.set_alias("production", base, expected="")
        recorded = {f"heldout_{metric}": value for metric, value in asyncio.run(measured()).items()}
        good = house.register(registry, 1, 0.01, recorded)
        overflows = house.register(registry, 2, 1e37, ends="to_out.0")
        worse = house.register(registry, 3, 3.0, recorded)
        lied = house.register(registry, 4, 0.01, recorded | {"heldout_aesthetic": 9.9})
        foreign = registry.register(Base("f" * 64, "other"), [WeightedAdapter(registry.get(good).parts[0].adapter)]).id

        async def whole() -> None:
            async with house.catalog(golden=golden, scores=scores) as (catalog, engine):
                at = base
                for version in (good, overflows, worse, lied, foreign):
                    await asyncio.to_thread(registry.set_alias, "production", version, expected=at)
                    at = version
                    if version == good:
                        await until(lambda: served(catalog) == good)
                        continue
                    await until(lambda version=version: version[:12] in catalog.trouble)
                    assert served(catalog) == good and catalog.ready
                    assert await asked(catalog, engine) == (good, pytest.approx(house.picture(good), abs=1))
                    with pytest.raises(InvalidInput, match="is not served") as refused:
                        await asked(catalog, engine, version)
                    assert refused.value.field == "model"
                words = {listed.id: listed.refused for listed in catalog.listing()}
                assert "base model" in words["vista@production"]
                for reached in (lied, worse, overflows, good):
                    await asyncio.to_thread(registry.rollback, "production", expected=at)
                    at = reached
                await until(lambda: not catalog.trouble)
                await asyncio.to_thread(registry.rollback, "production", expected=good, reason="plainer")
                await until(lambda: served(catalog) == base)
                assert (await asked(catalog, engine))[0] == base

        asyncio.run(whole())
        history = [move.version for move in registry.history("production")]
        assert history[-1] == base

        async def begun_on_a_bad_one() -> None:
            registry.set_alias("production", overflows, expected=base)
            async with house.catalog(golden=golden, scores=scores) as (catalog, engine):
                assert (await asked(catalog, engine))[0] == base  # where the alias pointed before
                assert "not finite" in catalog.trouble

        asyncio.run(begun_on_a_bad_one())
        scores.close()


def test_names_lead_to_versions_and_adapters(house: House, registry: RegistryClient) -> None:
    base, one, style = (house.register(registry, seed) for seed in (0, 1, 2))
    registry.set_alias("production", base, expected="")
    registry.set_alias("other", one, expected="")
    registry.set_alias("style-x", style, expected="")

    async def whole() -> None:
        async with house.catalog() as (catalog, engine):
            assert [listed.id for listed in catalog.listing()] == ["vista", "vista@production", "vista@other", "vista@style-x"]
            for name, version in (("", base), ("vista", base), ("vista@production", base), ("vista@other", one), (one[:8], one)):
                answered, image = await asked(catalog, engine, name)
                assert answered == version and same(image, house.picture(version)), name
            for name in ("vista+style-x:1", f"vista@production+{style[:10]}", "vista+style-x:0.25+style-x:0.75"):
                answered, image = await asked(catalog, engine, name)
                assert answered == base and abs(image.astype(int) - house.picture(style)).max() <= 2, name
            assert engine.extras == (style,) and set(engine.versions) == {base}  # what nobody needs was dropped
            for name in ("vista@canary", "vista+nobody", "facade00", "gpt-image-1"):
                with pytest.raises(NotFound):
                    await asked(catalog, engine, name)
            with pytest.raises(InvalidInput, match="no adapter"):
                await asked(catalog, engine, f"vista+{base}")

    asyncio.run(whole())


def test_adapters_in_use_stay_and_others_make_room(house: House, registry: RegistryClient) -> None:
    base, *styles = (house.register(registry, seed) for seed in (0, 1, 2))
    registry.set_alias("production", base, expected="")
    one = sum(a.nbytes + b.nbytes for a, b in house.adapter(1, 1.0).factors.values())

    async def whole() -> None:
        async with house.catalog(extras=one + 100) as (catalog, engine):  # room for one of them
            for style in (*styles, *styles):
                assert same((await asked(catalog, engine, f"vista+{style}"))[1], house.picture(style))
                assert engine.extras == (style,)
            async with catalog.lease(f"vista+{styles[0]}"):
                with pytest.raises(Busy):
                    await asked(catalog, engine, f"vista+{styles[1]}")
                assert engine.extras == (styles[0],)
            with pytest.raises(Busy):
                await asked(catalog, engine, f"vista+{styles[0]}+{styles[1]}")
            names = [f"vista+{styles[index % 2]}" for index in range(16)]
            answers = await asyncio.gather(*(asked(catalog, engine, name) for name in names), return_exceptions=True)
            assert {type(answer) for answer in answers} <= {tuple, Busy}

    asyncio.run(whole())


def test_without_its_scorers_a_service_starts_and_a_new_version_waits_for_them(house: House, registry: RegistryClient) -> None:
    base, one = house.register(registry, 0), house.register(registry, 1, 0.01)
    registry.set_alias("production", base, expected="")
    address = f"127.0.0.1:{free_port()}"
    scores = ScoringClient(address)

    async def whole() -> None:
        async with house.catalog(scores=scores) as (catalog, engine):
            assert (await asked(catalog, engine))[0] == base
            await asyncio.to_thread(registry.set_alias, "production", one, expected=base)
            await until(lambda: "waits for its scores" in catalog.trouble)
            assert (await asked(catalog, engine))[0] == base
            with served_at(scoring_services, address=address):
                await until(lambda: served(catalog) == one)
                assert not catalog.trouble

    asyncio.run(whole())
    scores.close()


def test_a_catalog_waits_for_its_alias_and_for_its_registry(house: House, registry: RegistryClient) -> None:
    base = house.register(registry, 0)

    async def whole() -> None:
        async with house.catalog(wait=False) as (catalog, engine):
            await until(lambda: "sfumato models promote" in catalog.trouble)
            assert not catalog.ready and catalog.listing() == ()
            with pytest.raises(Unavailable, match="production"):
                await asked(catalog, engine)
            await asyncio.to_thread(registry.set_alias, "production", base, expected="")
            await until(lambda: catalog.ready)
            assert (await asked(catalog, engine))[0] == base and not catalog.trouble

    asyncio.run(whole())

