"""The HTTP application: its routes, and the steps that all requests share."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from services.inference.http import bodies, documents, page
from services.inference.http.audit import AuditLog
from services.inference.http.errors import HANDLED, RequestRefused, answer, told
from services.inference.http.idempotency import IdempotentAnswers
from services.inference.http.images import FinishedImages, Images, Preview
from services.inference.http.keys import Keyring, Owner
from services.inference.http.request_metrics import RequestMetrics
from services.inference.http.schemas import (
    EditRequest,
    GenerationRequest,
    ImageFields,
    ImagesAnswer,
    ModelField,
    ModelsAnswer,
    PictureField,
)
from services.inference.http.streaming import streamed, while_connected
from services.inference.settings import InferenceSettings
from sfumato.errors import SfumatoError, Unavailable

VERSION = "x-sfumato-model-version"


class AppState:
    """The application's state: keys, audit log, kept answers, and `Images` once the model is loaded."""

    def __init__(self, settings: InferenceSettings) -> None:
        """Raises InvalidInput when the file of keys or a rate is unusable."""
        self.settings = settings
        self.keyring = Keyring.read(settings.keys, rate=settings.rate, concurrency=settings.concurrency)
        self.audit = AuditLog(settings.audit, settings.audit_prompts)
        self.answers: IdempotentAnswers[FinishedImages] = IdempotentAnswers(
            settings.idempotency_seconds, settings.idempotency_bytes, lambda finished: finished.bytes
        )
        self.trouble = ""
        self.failure: SfumatoError | None = None
        self._images: Images | None = None

    @property
    def images(self) -> Images:
        """Paints the pictures.

        Raises:
            Unavailable: the model is still being loaded, or the service is ending.
        """
        if self._images is None:
            raise Unavailable(self.trouble or "The model is being loaded.", hint="Wait until /readyz answers 200.")
        return self._images

    def open(self, images: Images) -> None:
        """Serve requests from now on."""
        self._images = images

    def close(self) -> None:
        """Serve no more requests."""
        self._images, self.trouble = None, "This service is being ended."
        self.audit.close()

    @property
    def ready(self) -> bool:
        """Whether a version is ready to answer requests."""
        return self._images is not None and self._images.catalog.ready


@dataclass(eq=False)
class RequestContext:
    """A request to paint: its client, its fields once they are parsed, and what the audit log records of it."""

    owner: Owner
    path: str
    key: str | None
    client: str
    identity: str
    begun: float = field(default_factory=time.perf_counter)
    fields: ImageFields | None = None
    edit: bodies.EditForm | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A digest that differs for different requests."""
        assert self.fields is not None
        return f"{self.path} {bodies.fingerprint(self.fields) if self.edit is None else self.edit.fingerprint()}"


def make_app(state: AppState) -> FastAPI:
    """The application."""
    app = FastAPI(**documents.ABOUT)
    for kind in HANDLED:
        app.add_exception_handler(kind, _failed)
    app.add_middleware(RequestMetrics)

    @app.post("/v1/images/generations", **documents.GENERATIONS)
    async def generations(request: Request) -> Response:
        """Paint pictures from a prompt."""

        async def read() -> tuple[GenerationRequest, None]:
            return await bodies.read_generation(request, state.settings.max_body), None

        return await _served(state, request, "image_generation", read)

    @app.post("/v1/images/edits", **documents.EDITS)
    async def edits(request: Request) -> Response:
        """Paint pictures from a prompt and an image; with a mask, only the masked part."""

        async def read() -> tuple[EditRequest, bodies.EditForm]:
            edit = await bodies.read_edit(request, state.settings.max_upload)
            return edit.fields, edit

        return await _served(state, request, "image_edit", read)

    @app.get("/v1/models", **documents.MODELS)
    async def models(request: Request) -> ModelsAnswer:
        """The models that requests may name, with their base and the version before."""
        state.keyring.owner(request.headers.get("authorization", ""))
        return ModelsAnswer(data=_listed(state))

    @app.get("/v1/models/{model:path}", **documents.MODEL)
    async def model(request: Request, model: str) -> ModelField:
        """One model."""
        state.keyring.owner(request.headers.get("authorization", ""))
        for listed in _listed(state):
            if listed.id == model:
                return listed
        raise RequestRefused(404, f"model: No model is called {model[:80]!r}. See /v1/models.", "model_not_found", "model")

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    page.mount(app, state.settings)
    documents.mount(app)
    return app


async def _served(
    state: AppState, request: Request, kind: str, read: Callable[[], Awaitable[tuple[ImageFields, bodies.EditForm | None]]]
) -> Response:
    """Read, admit, paint once, answer, and write to the audit log."""
    owner = state.keyring.owner(request.headers.get("authorization", ""))
    client = request.client.host if request.client else ""
    context = RequestContext(owner, request.url.path, request.headers.get("idempotency-key"), client, request.state.request_id)
    try:
        state.images  # noqa: B018 (raises Unavailable before a large body is read)
        fields, context.edit = await read()
        context.fields = fields
        paint = partial(_painted, state, context)
        if not fields.stream:
            finished = await while_connected(request, paint(None))
            return JSONResponse(_images_answer(finished), headers={VERSION: finished.version, **context.headers})
        shared = {"background": "opaque", "output_format": fields.kind, "size": fields.size or "auto", "quality": fields.quality or "auto"}
        return await streamed(
            request,
            kind,
            paint,
            shared,
            lambda version: ({VERSION: version} if version else {}) | context.headers,
            state.settings.keep_alive,
        )
    except Exception as error:
        if context.fields is None:
            _tell(state, context, error)
        raise


async def _painted(state: AppState, context: RequestContext, show: Callable[[Preview], object] | None) -> FinishedImages:
    """The request's pictures, painted now or kept from an earlier request; both go into the audit log."""
    fields, before = context.fields, False
    assert fields is not None

    async def work() -> FinishedImages:
        async with state.keyring.admitted(context.owner, fields.pictures) as headers:
            context.headers |= headers
            return await state.images.paint(fields, context.edit, show)

    try:
        if context.key is None:
            finished = await work()
        else:
            finished, before = await state.answers.once(context.owner.name, context.key, context.fingerprint, work)
            context.headers |= {"idempotent-replayed": "true"} if before else {}
    except asyncio.CancelledError:
        _tell(state, context, ClientDisconnect())
        raise
    except Exception as error:
        _tell(state, context, error)
        raise
    state.audit.tell(
        "painted",
        fields,
        **_who(context),
        status=200,
        replayed=before or None,
        version=finished.version,
        seeds=[seed for seed, _ in finished.files],
        files=[bodies.sha256(file) for _, file in finished.files],
    )
    return finished


def _tell(state: AppState, context: RequestContext, error: Exception) -> None:
    """Write a request that was refused, failed or was cancelled to the audit log."""
    refused, event = told(error), "given up" if isinstance(error, ClientDisconnect) else "refused"
    state.audit.tell(event, context.fields, **_who(context), status=refused.status, code=refused.code, param=refused.param)


def _who(context: RequestContext) -> Mapping[str, Any]:
    seconds = round(time.perf_counter() - context.begun, 4)
    return {"request": context.identity, "key": context.owner.name, "client": context.client, "path": context.path, "seconds": seconds}


def _images_answer(finished: FinishedImages) -> dict[str, Any]:
    """The answer when it is not streamed."""
    pictures = [PictureField(b64_json=base64.b64encode(file).decode(), seed=seed) for seed, file in finished.files]
    return ImagesAnswer(
        created=finished.created,
        data=pictures,
        output_format=finished.kind,
        size=finished.size,
        quality=finished.quality,
        model=finished.model,
        version=finished.version,
    ).model_dump(exclude_none=True)


def _listed(state: AppState) -> list[ModelField]:
    return [
        ModelField(
            id=each.id,
            created=int(each.created),
            root=each.root,
            parent=each.parent or None,
            version=each.version or None,
            refused=each.refused or None,
        )
        for each in state.images.catalog.listing()
    ]


async def _failed(_: Request, error: Exception) -> Response:
    """Any error in OpenAI's shape."""
    return answer(told(error))
