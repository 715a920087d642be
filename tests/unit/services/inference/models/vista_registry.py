"""What the catalog's tests share: the registry's real service on SQLite, Vista on the real engine, versions with random adapters."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from services.inference.models.canary import CanaryRule
from services.inference.models.catalog import Catalog, ServedBase
from services.inference.models.golden import GoldenCheck, GoldenPrompts, ImageScorer
from services.inference.painting.engine import EngineSettings, InferenceEngine, PaintRequest
from sfumato.diffusion.families.flux import FluxFamily
from sfumato.diffusion.loading import load_pipeline
from sfumato.lora.adapter import Adapter
from sfumato.lora.fuse import Fuser
from sfumato.registry.bases import base_modules
from sfumato.registry.client import RegistryClient
from sfumato.registry.records import Base, Version, WeightedAdapter
from sfumato.runtime.models.adapters import encode_adapter
from sfumato.runtime.models.versions import model_version
from sfumato.types import GenerateRequest, Image
from sfumato.vista import weights

STEPS = 1
ASKED = GenerateRequest("a red house by day", 7, 64, 64, STEPS)
GOLDEN = GoldenPrompts(("a house by day", "a boat on a lake"), steps=STEPS)
PATIENCE = 60.0


@dataclass(eq=False)
class House:
    """A registry behind an address, and Vista's generator."""

    address: str
    adapters: dict[str, Adapter | None] = field(default_factory=dict)

    @cached_property
    def base(self) -> Base:
        folder = weights.locate("generator")
        return Base(model_version(folder), "vista", base_modules(folder))

    @cached_property
    def pipeline(self) -> Any:
        return load_pipeline(weights.locate("generator"))

    def adapter(self, seed: int, size: float, ends: str = "to_q") -> Adapter:
        """Random factors on every attention's queries, or on other linears."""
        generator = torch.Generator().manual_seed(seed)
        factors = {}
        for name, module in self.pipeline.transformer.named_modules():
            if isinstance(module, nn.Linear) and re.fullmatch(FluxFamily.lora_targets, name) and name.endswith(ends):
                a = torch.randn(2, module.in_features, generator=generator)
                factors[name] = (a, size * torch.randn(module.out_features, 2, generator=generator))
        return Adapter(factors)

    def register(
        self, registry: RegistryClient, seed: int, size: float = 0.2, metrics: Mapping[str, float] | None = None, ends: str = "to_q"
    ) -> str:
        """The id of a version with such an adapter; 0 is the base model itself."""
        adapter = self.adapter(seed, size, ends) if seed else None
        data = encode_adapter(adapter) if adapter else b""
        digest = hashlib.sha256(data).hexdigest()
        parts, files = ([WeightedAdapter(digest)], {digest: data}) if adapter else ([], {})
        version: Version = registry.register(self.base, parts, files=files, metrics=metrics, note=f"random {seed}")
        self.adapters[version.id] = adapter
        return version.id

    def picture(self, version: str, request: GenerateRequest = ASKED) -> Image:
        """What a version paints, by the bare pipeline with its weights fused in."""
        pipeline: Any = load_pipeline(weights.locate("generator"))
        Fuser(pipeline.transformer).fuse(self.adapters[version])
        return FluxFamily(pipeline).decode(FluxFamily(pipeline).paint([request]), request.width, request.height)[0]

    @asynccontextmanager
    async def catalog(
        self,
        *,
        golden: GoldenPrompts = GOLDEN,
        canary: CanaryRule | None = None,
        scores: ImageScorer | None = None,
        keep: int = 0,
        extras: int = 2**30,
        wait: bool = True,
    ) -> AsyncIterator[tuple[Catalog, InferenceEngine]]:
        """A catalog that follows the registry, and its engine."""
        engine = InferenceEngine(self.pipeline, EngineSettings(extras=extras))

        async def paint(request: GenerateRequest, version: str) -> Image:
            return (await engine.paint(PaintRequest(request), version)).image

        check = GoldenCheck(paint, engine.limits, golden, scores)
        served = ServedBase("vista", self.base.id, keep=keep)
        catalog = Catalog(RegistryClient(self.address), engine, check, served, canary, scores)
        catalog.start()
        try:
            if wait:
                await until(lambda: catalog.ready)
            yield catalog, engine
        finally:
            await catalog.close()
            await engine.close()


async def until(true: Callable[[], bool]) -> None:
    """Wait for something to come true."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)


def served(catalog: Catalog, alias: str = "production") -> str:
    """The version that the listing tells of an alias."""
    return next((listed.version for listed in catalog.listing() if listed.id == f"vista@{alias}"), "")


def same(one: Image, other: Image) -> bool:
    """Equal but for rounding."""
    return bool(np.abs(one.astype(int) - other).max() <= 1)
