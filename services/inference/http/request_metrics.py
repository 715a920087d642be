"""Middleware that counts and times every request, gives it an id, and answers unexpected errors."""

from __future__ import annotations

import secrets
import time
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.inference.http.errors import answer, told
from sfumato.runtime.telemetry import SECONDS

requests = Counter("sfumato_inference_http_requests", "Requests answered, by route and HTTP status.", ["route", "status"])
request_seconds = Histogram("sfumato_inference_http_seconds", "Seconds from a request to its answer's end.", ["route"], buckets=SECONDS)
open_requests = Gauge("sfumato_inference_http_open", "Requests that are being answered.", multiprocess_mode="livesum")

REQUEST_ID = "x-request-id"


class RequestMetrics:
    """Middleware around all routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status, identity = time.perf_counter(), 0, f"req_{secrets.token_hex(12)}"

        scope.setdefault("state", {})["request_id"] = identity

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = identity
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        with open_requests.track_inprogress():
            try:
                await self._app(scope, receive, sent)
            except Exception as error:
                refused = told(error)
                if status:  # part of the answer was sent: only closing the connection is left
                    raise
                await answer(refused)(scope, receive, sent)
            finally:
                route = _route(scope)
                requests.labels(route, str(status)).inc()
                request_seconds.labels(route).observe(time.perf_counter() - begun)


def _route(scope: Scope) -> str:
    """The route's path pattern; all unknown paths have the label ``other``."""
    found: Any = scope.get("route")
    return getattr(found, "path", "") or "other"
