"""Builds the service's parts and closes them again: weights, engine, registry, catalog."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from services.inference.http.images import Images
from services.inference.models.canary import CanaryRule
from services.inference.models.catalog import Catalog, ServedBase
from services.inference.models.golden import GoldenCheck, GoldenPrompts, ScoringClient, read_golden
from services.inference.painting.engine import EngineSettings, InferenceEngine, PaintRequest
from services.inference.settings import InferenceSettings
from sfumato.diffusion.loading import load_pipeline
from sfumato.registry.client import RegistryClient
from sfumato.runtime.device import pick_device, precision_named
from sfumato.runtime.models.nudenet import NudityDetector
from sfumato.runtime.models.references import model_folder
from sfumato.runtime.models.versions import model_version
from sfumato.runtime.settings import Settings
from sfumato.types import GenerateRequest, Image

PRODUCTION = "production"


def served_name(model: str) -> tuple[str, str]:
    """The base's name and the alias of a model such as ``vista@production``; the alias defaults to production."""
    name, _, alias = model.partition("@")
    return name, alias or PRODUCTION


@asynccontextmanager
async def opened(settings: InferenceSettings) -> AsyncIterator[Images]:
    """The service's `Images` while the context is open; the catalog may still wait for its first version.

    Raises:
        InvalidInput: a setting is unusable.
        MissingWeights, BrokenWeights: the base model cannot be loaded.
    """
    name, alias = served_name(settings.model)
    limits = {"clip": settings.golden_clip, "aesthetic": settings.golden_aesthetic}
    golden = GoldenPrompts(read_golden(settings.golden) if settings.golden else read_golden(), limits=limits)
    base, engine = await asyncio.to_thread(_loaded, settings)
    detector = await asyncio.to_thread(NudityDetector.load) if settings.safety == "nudenet" else None

    async def paint(request: GenerateRequest, version: str) -> Image:
        return (await engine.paint(PaintRequest(request), version)).image

    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.close)
        scores = ScoringClient(settings.scoring) if settings.scoring else None
        if scores is not None:
            stack.callback(scores.close)
        check = GoldenCheck(paint, engine.limits, golden, scores)
        rule = CanaryRule(weight=settings.canary, requests=settings.canary_requests)
        catalog = Catalog(RegistryClient(settings.registry), engine, check, ServedBase(name, base, alias, settings.keep), rule, scores)
        catalog.start()
        stack.push_async_callback(catalog.close)
        yield Images(engine, catalog, settings.max_pictures, settings.max_adapter_scale, detector)


def _loaded(settings: InferenceSettings) -> tuple[str, InferenceEngine]:
    """The id of the base model's weights, and an engine on them."""
    folder = model_folder(settings.base, "generator", Settings())
    pipeline = load_pipeline(folder, dtype=precision_named(settings.precision), device=pick_device())
    scales = (0.0, settings.max_adapter_scale)
    limits = EngineSettings(settings.pictures, settings.waiting, settings.max_batch, settings.memory, extras=settings.extras, scales=scales)
    return model_version(folder), InferenceEngine(pipeline, limits)
