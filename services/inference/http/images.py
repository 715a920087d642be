"""From a parsed request to its picture files: lease a version, paint, check for nudity, encode."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from services.inference.http.bodies import EditForm
from services.inference.http.errors import RequestRefused
from services.inference.http.schemas import MAX_SEED, ImageFields
from sfumato.diffusion.limits import ModelLimits
from sfumato.diffusion.previews import Previews
from sfumato.errors import Busy, InvalidInput, NotFound, Unavailable
from sfumato.runtime.cancel import cancel_all
from sfumato.runtime.images import decode_cut_out, decode_mask, resize
from sfumato.runtime.infotext import GenerationParameters
from sfumato.runtime.picture_files import Format, encode
from sfumato.types import GenerateRequest, Image, Region, Start

if TYPE_CHECKING:
    from services.inference.models.catalog import Catalog, VersionLease
    from services.inference.painting.engine import InferenceEngine, PaintedImage, PaintRequest
    from sfumato.runtime.models.nudenet import NudityDetector

INLINE = 1 << 17
"""Bytes of pictures, and characters of their parameters, up to which encoding takes less time than starting a thread."""
RANDOM_SEEDS = 2**32
"""Range of random seeds: integers that JSON parsers of all languages hold exactly."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture in work: its index in the request, the index of the preview, the encoded file, and the version that paints it."""

    picture: int
    index: int
    file: bytes
    version: str


Show = Callable[[Preview], object]
"""Is called with every preview, in the event loop."""


@dataclass(frozen=True, slots=True)
class FinishedImages:
    """A request's files, each with its seed, and the model and version that painted them."""

    files: tuple[tuple[int, bytes], ...]
    created: int
    size: str
    kind: Format
    quality: str | None
    model: str
    version: str

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(len(file) for _, file in self.files)


@dataclass(frozen=True, eq=False)
class Images:
    """Answers requests for images with the engine and the catalog."""

    engine: InferenceEngine
    catalog: Catalog
    max_pictures: int = 10
    max_adapter_scale: float = 2.0
    detector: NudityDetector | None = None

    async def paint(self, fields: ImageFields, edit: EditForm | None = None, show: Show | None = None) -> FinishedImages:
        """Paint all pictures of a request by one version of the model; ``show`` receives previews, in this event loop.

        Cancelling it cancels all its pictures.

        Raises:
            InvalidInput: names the field that cannot be served.
            RequestRefused: the model is unknown, or a picture was held back.
            Busy, Unavailable: try again later.
        """
        all_wanted = self._paint_requests(fields, None) if edit is None else await asyncio.to_thread(self._paint_requests, fields, edit)
        try:
            async with self.catalog.lease(fields.model or "") as lease:
                return await self._finished(all_wanted, lease, fields, show)
        except NotFound as error:
            raise RequestRefused(404, f"model: {error}", "model_not_found", "model") from error

    async def _finished(
        self, all_wanted: Sequence[PaintRequest], lease: VersionLease, fields: ImageFields, show: Show | None
    ) -> FinishedImages:
        painted = await self._timed(all_wanted, lease, fields, show)
        await look_at([each.image for each in painted], self.detector)
        parameters = [_parameters(wanted, lease, self.engine.limits.sampler) for wanted in all_wanted]
        small = sum(each.image.size for each in painted) + sum(made.characters for made in parameters) < INLINE
        files = _files(painted, parameters, fields) if small else await asyncio.to_thread(_files, painted, parameters, fields)
        size = f"{all_wanted[0].request.width}x{all_wanted[0].request.height}"
        return FinishedImages(files, int(time.time()), size, fields.kind, fields.quality, _name(lease), lease.version)

    async def _timed(
        self, all_wanted: Sequence[PaintRequest], lease: VersionLease, fields: ImageFields, show: Show | None
    ) -> list[PaintedImage]:
        """The pictures; the request is counted for its version, except errors caused by the client or by a full queue."""
        begun = time.perf_counter()
        try:
            painted = await self._painted(all_wanted, lease, fields, show)
        except (InvalidInput, Busy, Unavailable):
            raise
        except Exception:
            lease.done(time.perf_counter() - begun, ok=False)
            raise
        lease.done(time.perf_counter() - begun, ok=True, image=painted[0].image, prompt=fields.prompt)
        return painted

    async def _painted(
        self, all_wanted: Sequence[PaintRequest], lease: VersionLease, fields: ImageFields, show: Show | None
    ) -> list[PaintedImage]:
        """All pictures concurrently; when one fails, the others are cancelled."""
        encoding: list[asyncio.Task[None]] = []
        previews = [self._previews(index, wanted, lease, fields, show, encoding) for index, wanted in enumerate(all_wanted)]
        tasks = [
            asyncio.create_task(self.engine.paint(wanted, lease.version, lease.extras, previews=previewing))
            for wanted, previewing in zip(all_wanted, previews, strict=True)
        ]
        try:
            painted = list(await asyncio.gather(*tasks))
            await asyncio.gather(*encoding)  # so that no preview is sent after its picture
            return painted
        finally:
            await cancel_all([*tasks, *encoding])

    def _previews(
        self,
        picture: int,
        wanted: PaintRequest,
        lease: VersionLease,
        fields: ImageFields,
        show: Show | None,
        encoding: list[asyncio.Task[None]],
    ) -> Previews | None:
        """Sends the previews of one picture, at most as many as requested."""
        if show is None or not fields.partial_images:
            return None
        most = fields.partial_images

        async def encoded(before: asyncio.Task[None] | None, index: int, image: Image, words: str) -> None:
            parameters = _parameters(wanted, lease, self.engine.limits.sampler, {"Preview": words})
            file = await asyncio.to_thread(encode, image, parameters, fields.kind)
            if before is not None:
                await before
            show(Preview(picture, index, file, lease.version))

        mine: list[asyncio.Task[None]] = []

        def tell(_: int, done: int, total: int, image: Image) -> None:
            if len(mine) < most:
                before = mine[-1] if mine else None
                mine.append(asyncio.create_task(encoded(before, len(mine), image, f"{done} of {total} steps")))
                encoding.append(mine[-1])

        return Previews(max(1, -(-wanted.request.steps_made // (most + 1))), tell)

    def _paint_requests(self, fields: ImageFields, edit: EditForm | None) -> list[PaintRequest]:
        """One `PaintRequest` per picture, with the model's defaults for absent fields."""
        from services.inference.painting.engine import PaintRequest

        limits = self.engine.limits
        if fields.pictures > self.max_pictures:
            raise InvalidInput("n", f"{fields.pictures} is more than the {self.max_pictures} pictures of a request.")
        if (fields.adapter_scale or 0) > self.max_adapter_scale:
            raise InvalidInput("adapter_scale", f"{fields.adapter_scale:g} is not in 0..{self.max_adapter_scale:g}.")
        seed = fields.seed if fields.seed is not None else secrets.randbelow(RANDOM_SEEDS)
        if seed + fields.pictures - 1 > MAX_SEED:
            raise InvalidInput("seed", f"{fields.pictures} pictures from {seed} on go beyond 2^63-1.")
        start = None if edit is None else start_of(edit, limits)
        size = (limits.default_size, limits.default_size) if start is None else start.image.shape[1::-1]
        width, height = fields.pixels(*size)
        first = PaintRequest(
            request=GenerateRequest(
                prompt=fields.prompt,
                seed=seed,
                width=width,
                height=height,
                steps=fields.steps(limits.default_steps, limits.max_steps),
                guidance_scale=limits.default_guidance if fields.guidance_scale is None else fields.guidance_scale,
                regions=tuple(Region(each.prompt, _box(each.bbox), each.strength) for each in fields.regions or ()),
                start=start,
                negative_prompt=fields.negative_prompt or "",
            ),
            adapter_scale=1.0 if fields.adapter_scale is None else float(fields.adapter_scale),
        )
        return [replace(first, request=replace(first.request, seed=seed + index)) for index in range(fields.pictures)]


async def look_at(images: Sequence[Image], detector: NudityDetector | None) -> None:
    """Hold back all pictures of a request when the detector finds nudity in one of them; without a detector nothing is checked.

    Raises:
        RequestRefused: 400, ``moderation_blocked``.
    """
    if detector is not None and any(await asyncio.to_thread(detector.unsafe, images)):
        message = "A picture was held back: the check of what is given out found nudity in it."
        raise RequestRefused(400, message, "moderation_blocked", "prompt", "image_generation_user_error")


def start_of(edit: EditForm, limits: ModelLimits) -> Start:
    """The picture to start from and its mask, in the painted size: the requested size, else the picture's own.

    Without a file for it, the mask is the hole in the picture, if it has one (OpenAI's convention).

    Raises:
        InvalidInput: naming ``image``, ``mask`` or ``size``.
    """
    image, hole = decode_cut_out(edit.image, "image")
    mask = hole if edit.mask is None else decode_mask(edit.mask, "mask")
    if mask is not None and mask.shape != image.shape[:2]:
        sizes = " and ".join(f"{each.shape[1]} x {each.shape[0]}" for each in (mask, image))
        raise InvalidInput("mask", f"must be of the image's size: they are {sizes} pixels.")
    width, height = edit.fields.pixels(image.shape[1], image.shape[0])
    if max(width, height) > limits.max_size:
        hint = f"The longer side may be {limits.max_size}; say which size you want."
        raise InvalidInput("size", f"{width}x{height} is more than this model paints.", hint=hint)
    if not (width and height):
        raise InvalidInput("size", f"{width}x{height} is no picture.")
    if mask is not None:
        mask = np.where(resize(mask, width, height) > 127, np.uint8(255), np.uint8(0))
        if edit.mask is None and not mask.any():
            mask = None  # the hole is smaller than a pixel of the painted size
    return Start(resize(image, width, height), edit.fields.distance(hole=edit.mask is None and mask is not None), mask)


def _files(
    painted: Sequence[PaintedImage], parameters: Sequence[GenerationParameters], fields: ImageFields
) -> tuple[tuple[int, bytes], ...]:
    quality = 95 if fields.output_compression is None else fields.output_compression
    return tuple((each.seed, encode(each.image, made, fields.kind, quality)) for each, made in zip(painted, parameters, strict=True))


def _parameters(wanted: PaintRequest, lease: VersionLease, sampler: str, settings: dict[str, Any] | None = None) -> GenerationParameters:
    request, told = wanted.request, dict(settings or {})
    if request.start is not None:
        told["Denoising strength"] = f"{request.start.strength:g}"
    if lease.extras:
        told["Adapters"] = ", ".join(f"{name}:{weight:g}" for name, weight in lease.extras)
    return GenerationParameters(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        steps=request.steps,
        sampler=sampler,
        guidance_scale=request.guidance_scale,
        width=request.width,
        height=request.height,
        model=_name(lease),
        version=lease.version,
        adapter_scale=wanted.adapter_scale,
        regions=request.regions,
        settings=told,
    )


def _box(sides: Sequence[int]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = sides
    return x1, y1, x2, y2


def _name(lease: VersionLease) -> str:
    """The model's name in a request."""
    return f"{lease.base}@{lease.alias}" if lease.alias else lease.base
