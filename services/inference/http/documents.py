"""The OpenAPI description, and Swagger UI served from local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

import sfumato
from services.inference.http.errors import ErrorBody
from services.inference.http.schemas import EditRequest, GenerationRequest, ImagesAnswer, schemas_of

ABOUT: dict[str, Any] = {
    "title": "sfumato inference",
    "version": sfumato.__version__,
    "summary": "The fused model behind OpenAI's API of images.",
    "docs_url": None,
    "redoc_url": None,
    "openapi_url": None,
}
# Bento's own page of documentation comes with the files of Swagger UI.
SWAGGER = Path(bentoml.__file__).parent / "_internal" / "server" / "static_content"

_REFUSALS = {
    400: "A parameter is unusable; `error.param` names it.",
    401: "There is no key, or it is not known.",
    404: "No model is called so.",
    413: "The body is too large.",
    415: "The body is of another kind.",
    422: "The Idempotency-Key was sent with another request.",
    429: "The queue is full, or the key has had its share; Retry-After says when to come again.",
    503: "The model is being loaded, or the service is being ended.",
}
_VERSION = {"x-sfumato-model-version": {"description": "The version of the model that painted.", "schema": {"type": "string"}}}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A request that comes again with its key is answered as before; nothing is painted twice.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}


_EVENT = {
    "type": "object",
    "title": "Event",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "description": "image_generation.partial_image, image_generation.completed, image_edit..., or error."},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "An event of OpenAI's, with the same type."},
    },
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody, "description": _REFUSALS[status]} for status in statuses}


def _painting(kind: str, schema: dict[str, Any], **extra: Any) -> dict[str, Any]:
    streamed = {"text/event-stream": {"schema": _EVENT}}
    painted = {"model": ImagesAnswer, "description": "The pictures.", "headers": _VERSION, "content": streamed}
    return {
        "tags": ["images"],
        "response_model": ImagesAnswer,
        "responses": {200: painted, **_refusals(400, 401, 404, 413, 415, 422, 429, 503)},
        "openapi_extra": {"parameters": [_KEY], "requestBody": {"required": True, "content": {kind: {"schema": schema, **extra}}}},
    }


_FILE = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
GENERATIONS = _painting("application/json", {"$ref": "#/components/schemas/GenerationRequest"})
EDITS = _painting("multipart/form-data", {"$ref": "#/components/schemas/EditForm"})
MODELS: dict[str, Any] = {"tags": ["models"], "responses": _refusals(401, 503)}
MODEL: dict[str, Any] = {"tags": ["models"], "responses": _refusals(401, 404, 503)}


def mount(app: FastAPI) -> None:
    """``/openapi.json`` and ``/docs``."""
    description = _description(app)

    @app.get("/openapi.json", include_in_schema=False)
    def openapi() -> dict[str, Any]:
        return description

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="sfumato inference",
            swagger_js_url="docs/files/swagger-ui-bundle.js",
            swagger_css_url="docs/files/swagger-ui.css",
            swagger_favicon_url="docs/files/favicon-light-32x32.png",
            swagger_ui_parameters={"validatorUrl": None},  # otherwise it sends the description to an external validator
        )

    app.mount("/docs/files", StaticFiles(directory=SWAGGER), name="swagger")


def _description(app: FastAPI) -> dict[str, Any]:
    described = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    schemas: dict[str, Any] = described["components"]["schemas"]
    schemas |= schemas_of(GenerationRequest, EditRequest)
    schemas["EditForm"] = _form(schemas.pop("EditRequest"))
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in described["paths"].values():
        for operation in path.values():
            if operation["responses"].get("422", {}).get("description") == "Validation Error":
                del operation["responses"]["422"]
    described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{"key": []}, {}]
    return described


def _form(fields: dict[str, Any]) -> dict[str, Any]:
    """The form of an edit: its fields and its files. Regions are JSON text in a form."""
    files = {
        "image": {**_FILE, "description": "PNG, JPEG or WebP. Without a mask, its transparent parts are repainted, if it has any."},
        "mask": {**_FILE, "description": "Of the image's size. Transparent parts are repainted; white parts, if nothing is transparent."},
    }
    regions = {"type": "string", "contentMediaType": "application/json", "description": "As in generations, as JSON."}
    properties = fields["properties"] | {"regions": regions} | files
    return {**fields, "title": "EditForm", "properties": properties, "required": ["image", "prompt"]}
