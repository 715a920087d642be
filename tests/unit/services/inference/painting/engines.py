"""What the tests of the inference engine share: tiny engines, bare pipelines of the same weights, wishes, forwards counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from services.inference.painting.engine import EngineSettings, InferenceEngine, PaintedImage, PaintRequest
from sfumato.diffusion.families import family_of
from sfumato.lora.adapter import Adapter
from sfumato.types import GenerateRequest, Image
from tests.unit.diffusion import tiny

MAKERS: dict[str, tuple[Callable[[], Any], float]] = {
    "flux": (tiny.flux, 1.0),
    "flux with guidance": (lambda: tiny.flux(guidance_embeds=True), 3.5),
    "sd": (tiny.sd, 5.0),
    "sdxl": (tiny.sdxl, 5.0),
    "sd3": (tiny.sd3, 5.0),
}
T = TypeVar("T")


def asked(seed: int = 7, prompt: str = "a full moon over the lake", *, steps: int = 3, scale: float = 1.0, **more: Any) -> PaintRequest:
    return PaintRequest(GenerateRequest(prompt, seed, tiny.SIZE, tiny.SIZE, steps, **more), scale)


def adapter(model: nn.Module, rank: int = 2, seed: int = 0, size: float = 0.2) -> Adapter:
    """Random factors on every second linear that a family's adapters may sit on."""
    generator = torch.Generator().manual_seed(seed)
    linears = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear) and ("attn" in name or "ff" in name)]
    factors = {}
    for name, part in linears[seed % 2 :: 2]:
        a = torch.randn(rank, part.in_features, generator=generator)
        factors[name] = (a, size * torch.randn(part.out_features, rank, generator=generator))
    return Adapter(factors)


def painting(engine: InferenceEngine, work: Callable[[InferenceEngine], Awaitable[T]]) -> T:
    """Run something on an engine's loop, and close it."""

    async def whole() -> T:
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(whole())


async def together(engine: InferenceEngine, all_asked: Sequence[PaintRequest], *versions: str, **more: Any) -> list[PaintedImage]:
    """Paint wishes that all stand at the denoiser before its first forward; each with a version, or all with the same."""
    named = versions * len(all_asked) if len(versions) == 1 else versions
    with engine._batcher.quiet():
        tasks = [asyncio.create_task(engine.paint(each, name, **more)) for each, name in zip(all_asked, named, strict=True)]
        while len(engine._batcher._waiting) < len(all_asked):
            await asyncio.sleep(0.001)
            assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
    return list(await asyncio.gather(*tasks))


def engine_of(pipeline: Any, **settings: Any) -> InferenceEngine:
    """An engine whose base alone is prepared, as "base"."""
    engine = InferenceEngine(pipeline, EngineSettings(**settings))
    engine.prepare("base", None)
    return engine


def bare(pipeline: Any, wanted: GenerateRequest) -> Image:
    """The unmodified pipeline's picture."""
    family: Any = family_of(pipeline)
    latents = family.paint([wanted])
    return family.decode(latents, wanted.width, wanted.height)[0]


@contextmanager
def counted(pipeline: Any) -> Iterator[list[int]]:
    """The rows of every forward of a pipeline's network while open."""
    model = network(pipeline)
    rows: list[int] = []
    hook = model.register_forward_hook(lambda _, args, kwargs, output: rows.append(len(output[0])), with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def changed(one: PaintRequest, **more: Any) -> PaintRequest:
    return replace(one, request=replace(one.request, **more))


def network(pipeline: Any) -> nn.Module:
    """A pipeline's transformer or UNet."""
    return getattr(pipeline, "transformer", None) or pipeline.unet
