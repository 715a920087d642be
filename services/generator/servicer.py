"""The generator's service: messages to the engine and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from safetensors.torch import save

from services.generator.engine import Picture
from services.generator.served import ServedGenerator
from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.previews import Previews
from sfumato.errors import InvalidInput
from sfumato.runtime.artifacts import ArtifactStore
from sfumato.runtime.images import encode_png, resize
from sfumato.runtime.serving.engine_queue import Caller, EngineQueue
from sfumato.runtime.serving.images import read_image, within, write_image
from sfumato.runtime.serving.models import adapter_of, check_base, fused_of
from sfumato.texts import normalised
from sfumato.types import GenerateRequest, Image, Region, Start
from sfumato.v1 import common_pb2, generator_pb2
from sfumato.v1.generator_pb2_grpc import GeneratorServiceServicer

INLINE_PIXELS = 16_000_000
"""Of all pictures of an answer: as PNG they are 48 MB at most, and fit in a message of 64 MiB."""
PREVIEW = 128
"""Pixels of the longer side of a preview."""


class GeneratorServicer(GeneratorServiceServicer):
    """See ``protos/sfumato/v1/generator.proto``."""

    def __init__(self, queue: EngineQueue[ServedGenerator], artifacts: ArtifactStore) -> None:
        self._queue, self._artifacts = queue, artifacts

    async def GetLimits(self, request: generator_pb2.GetLimitsRequest, context: Any) -> generator_pb2.GetLimitsResponse:
        """What may be asked of the model, and its defaults."""
        limits = self._queue.engine.limits
        return generator_pb2.GetLimitsResponse(
            base=self._queue.engine.base,
            grid=limits.grid,
            min_size=limits.min_size,
            max_size=limits.max_size,
            prompt_tokens=limits.prompt_tokens,
            max_steps=limits.max_steps,
            min_guidance=limits.guidance[0],
            max_guidance=limits.guidance[1],
            max_regions=limits.max_regions,
            default_size=limits.default_size,
            default_steps=limits.default_steps,
            default_guidance=limits.default_guidance,
            sampler=limits.sampler,
        )

    async def Generate(self, request: generator_pb2.GenerateRequest, context: Any) -> generator_pb2.GenerateResponse:
        """Paint one picture for each seed."""

        def work(served: ServedGenerator, caller: Caller) -> list[generator_pb2.Picture]:
            return self._painted(served, request, lambda done, total: caller.check())

        return generator_pb2.GenerateResponse(pictures=await self._queue.call(work))

    async def GenerateStream(
        self, request: generator_pb2.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[generator_pb2.GenerateStreamResponse]:
        """The same with the steps as they are done."""

        def work(served: ServedGenerator, caller: Caller) -> generator_pb2.GenerateStreamResponse:
            def step_ended(done: int, total: int) -> None:
                caller.check()
                caller.tell(generator_pb2.GenerateStreamResponse(progress=generator_pb2.StepProgress(done=done, total=total)))

            def shown(index: int, done: int, total: int, image: Image) -> None:
                preview = generator_pb2.Preview(index=index, done=done, total=total, image=common_pb2.Image(data=encode_png(small(image))))
                caller.tell(generator_pb2.GenerateStreamResponse(preview=preview))

            previews = Previews(request.preview_every, shown) if request.preview_every else None
            pictures = generator_pb2.Pictures(pictures=self._painted(served, request, step_ended, previews))
            return generator_pb2.GenerateStreamResponse(pictures=pictures)

        async for event in self._queue.stream(work):
            yield event

    def _painted(
        self,
        served: ServedGenerator,
        request: generator_pb2.GenerateRequest | generator_pb2.GenerateStreamRequest,
        step_ended: Callable[[int, int], None],
        previews: Previews | None = None,
    ) -> list[generator_pb2.Picture]:
        """The pictures of a request, with its adapters fused; raises what `step_ended` raises."""
        check_base(request.model, served.base)
        with within("painting", seed="seeds"):
            requests = requests_of(request.painting, served.limits, self._artifacts)
        check_delivery(requests, request.delivery)
        engine = served.engine()
        with within("model", adapter="adapters"):
            engine.use(fused_of(request.model), lambda: adapter_of(request.model, self._artifacts))
        with within("painting", seed="seeds"):
            pictures = engine.generate(requests, step_ended, served.settings, previews)
        return [self._answer(picture, request.delivery) for picture in pictures]

    def _answer(self, picture: Picture, delivery: common_pb2.Delivery) -> generator_pb2.Picture:
        latents = ""
        if delivery == common_pb2.DELIVERY_ARTIFACT:
            latents = self._artifacts.put(save({"latents": picture.latents.detach().float().cpu().contiguous()}))
        image = write_image(picture.image, delivery, self._artifacts)
        return generator_pb2.Picture(seed=picture.seed, image=image, latents=latents)


def check_delivery(requests: Sequence[GenerateRequest], delivery: common_pb2.Delivery) -> None:
    """Refuse pictures that no message holds before they are painted.

    Raises:
        InvalidInput: they are to come in the answer and are more than 16 megapixels.
    """
    pixels = sum(request.width * request.height for request in requests)
    if delivery != common_pb2.DELIVERY_ARTIFACT and pixels > INLINE_PIXELS:
        hint = "Ask for DELIVERY_ARTIFACT, or for fewer seeds."
        raise InvalidInput("delivery", f"{pixels} pixels are too many for an answer.", hint=hint)


def small(image: Image) -> Image:
    """The picture with a longer side of `PREVIEW` pixels at most."""
    height, width = image.shape[:2]
    share = min(1.0, PREVIEW / max(height, width))
    return resize(image, max(1, round(width * share)), max(1, round(height * share)))


def requests_of(painting: generator_pb2.Painting, limits: ModelLimits, artifacts: ArtifactStore) -> list[GenerateRequest]:
    """One request for each seed, the defaults of the model filled in, and the size of the picture to start from.

    Raises:
        InvalidInput: the picture to start from is none.
        NotFound: it is not in the store.
    """
    start = None
    if painting.HasField("start"):
        start = Start(read_image(painting.start.image, "start.image", artifacts), painting.start.strength)
    height, width = (limits.default_size, limits.default_size) if start is None else start.image.shape[:2]

    def given(field: str, default: Any) -> Any:
        return getattr(painting, field) if painting.HasField(field) else default  # pyright: ignore[reportArgumentType]

    def request(seed: int) -> GenerateRequest:
        return GenerateRequest(
            prompt=normalised(painting.prompt),
            seed=seed,
            width=given("width", width),
            height=given("height", height),
            steps=given("steps", limits.default_steps),
            guidance_scale=given("guidance_scale", limits.default_guidance),
            regions=tuple(Region(normalised(r.prompt), (r.box.x1, r.box.y1, r.box.x2, r.box.y2)) for r in painting.regions),
            regional_steps=given("regional_steps", 1.0),
            soft_edges=given("soft_edges", 0.0),
            condition_noise=given("condition_noise", 0.0),
            start=start,
        )

    return [request(seed) for seed in painting.seeds]
