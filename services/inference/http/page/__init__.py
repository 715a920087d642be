"""The try-it page: a prompt, a seed, and the base and the fused model side by side. Plain HTML and JavaScript, all served locally."""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from services.inference.settings import InferenceSettings

FOLDER = Path(__file__).parent
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def mount(app: FastAPI, settings: InferenceSettings) -> None:
    """Add ``/``, and the page's files below ``/page/``."""
    known = {"model": settings.model, "largest": settings.max_adapter_scale, "keys": settings.keys is not None}
    words = json.dumps(known)

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers={"Content-Security-Policy": POLICY})

    @app.get("/page/settings.json", include_in_schema=False)
    def given() -> Response:
        return Response(words, media_type="application/json", headers={"Cache-Control": "no-store"})

    app.mount("/page", StaticFiles(directory=FOLDER), name="page")
