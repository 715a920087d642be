"""Calls from web pages of other origins (CORS): which may call, and what their scripts may read."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS = ("GET", "HEAD", "POST")
READABLE = (
    "x-request-id",
    "x-sfumato-model-version",
    "retry-after",
    "idempotent-replayed",
    "x-ratelimit-limit-images",
    "x-ratelimit-remaining-images",
    "x-ratelimit-reset-images",
)
"""Headers of an answer that a page's script may read."""
KEPT = 600
"""Seconds for which a browser keeps the answer to its question whether it may call."""


def allowing(app: ASGIApp, origins: str) -> ASGIApp:
    """The application with the headers of CORS on every answer, errors too; itself if ``origins`` is empty.

    The service uses no cookies: keys are in a header of their own. Listed origins may send the cookies of what stands before the service
    (``credentials``); with ``*`` no page may.
    """
    listed = [origin.strip() for origin in origins.split(",") if origin.strip()]
    if not listed:
        return app
    anyone = "*" in listed
    return CORSMiddleware(
        app,
        allow_origins=["*"] if anyone else listed,
        allow_methods=METHODS,
        allow_headers=["*"],
        allow_credentials=not anyone,
        expose_headers=READABLE,
        max_age=KEPT,
    )
