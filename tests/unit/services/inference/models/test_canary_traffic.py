"""A canary with the registry's real service and the real engine: promoted or withdrawn by its rule, with the reason in the history."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from prometheus_client import REGISTRY

from services.inference.models.canary import CanaryRule
from services.inference.models.catalog import Catalog
from services.inference.painting.engine import InferenceEngine, PaintRequest
from sfumato.registry.client import RegistryClient
from sfumato.types import Image
from tests.unit.services.inference.models.vista_registry import ASKED, House, served, until

RULE = CanaryRule(weight=0.25, requests=24, latency=1e9)
"""On so loaded a machine as a test's, latency says nothing."""


class Brightness:
    """Scores anybody can recompute: the mean of a picture."""

    async def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[dict[str, float]]:
        return [{"aesthetic": float(image.mean()), "clip": 80.0} for image in images]


async def request(catalog: Catalog, engine: InferenceEngine, model: str = "vista", *, fails: str = "") -> str:
    async with catalog.lease(model) as lease:
        ok = lease.version != fails
        image = (await engine.paint(PaintRequest(ASKED), lease.version)).image if ok else None
        lease.done(0.1, ok, image, ASKED.prompt)
        return lease.version


def counted(version: str, outcome: str) -> float:
    labels = {"version": version[:12], "outcome": outcome}
    return REGISTRY.get_sample_value("sfumato_inference_version_requests_total", labels) or 0.0


def test_a_canary_is_promoted_and_the_next_one_withdrawn(house: House, registry: RegistryClient) -> None:
    base, better, failing = (house.register(registry, seed) for seed in (0, 5, 6))
    registry.set_alias("production", base, expected="")
    registry.set_alias("canary", better, expected="")
    before = counted(better, "ok"), counted(failing, "failed")

    async def whole() -> None:
        async with house.catalog(canary=RULE) as (catalog, engine):
            await until(lambda: served(catalog, "canary") == better)
            shares = Counter([await request(catalog, engine) for _ in range(48)])
            assert shares == {base: 36, better: 12}
            assert await request(catalog, engine, "vista@production") == base  # a named alias is no matter of chance
            shares.update([await request(catalog, engine, "vista@canary") for _ in range(11)])
            assert registry.resolve("production") == base
            await request(catalog, engine, "vista@canary")  # the 24th
            await until(lambda: served(catalog) == better)
            assert counted(better, "ok") - before[0] == 24
            assert {await request(catalog, engine) for _ in range(8)} == {better}

            await asyncio.to_thread(registry.set_alias, "canary", failing, expected=better)
            await until(lambda: served(catalog, "canary") == failing)
            for _ in range(20):
                await request(catalog, engine, "vista@canary", fails=failing)
            await until(lambda: served(catalog, "canary") == better)
            assert served(catalog) == better and counted(failing, "failed") - before[1] == 20

    asyncio.run(whole())
    assert "canary promoted: errors 0 of 24 against 0 of 37" in registry.history("production")[-1].reason
    assert "canary withdrawn early: errors 20 of 20" in registry.history("canary")[-1].reason


def test_a_canary_whose_pictures_score_worse_is_withdrawn(house: House, registry: RegistryClient) -> None:
    versions = [house.register(registry, seed, 0.5) for seed in (0, 5)]
    darker, brighter = sorted(versions, key=lambda version: float(house.picture(version).mean()))
    registry.set_alias("production", brighter, expected="")
    registry.set_alias("canary", darker, expected="")

    async def whole() -> None:
        async with house.catalog(canary=RULE, scores=Brightness()) as (catalog, engine):
            await until(lambda: served(catalog, "canary") == darker)
            for model in ["vista@production"] * 24 + ["vista@canary"] * 24:
                await request(catalog, engine, model)
            await until(lambda: served(catalog, "canary") == brighter)
            assert served(catalog) == brighter

    asyncio.run(whole())
    assert "canary withdrawn: aesthetic" in registry.history("canary")[-1].reason
