"""The Bento service: ``bentoml serve services.inference:Inference``; settings ``SFUMATO_INFERENCE_*``, ``SFUMATO_*``.

Bento answers ``/livez``, ``/healthz`` and ``/readyz``; everything else is the application in `services.inference.http`. The service
listens at once, and is ready when the first version of its model is ready.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import ExitStack

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from services.inference.http.app import AppState, make_app
from services.inference.http.cors import allowing
from services.inference.settings import InferenceSettings
from services.inference.wiring import opened
from sfumato.errors import SfumatoError
from sfumato.runtime import logs
from sfumato.runtime.settings import TelemetrySettings
from sfumato.runtime.telemetry import observing

log = logging.getLogger(__name__)

BENTOS = frozenset({"/livez", "/healthz", "/readyz"})
LOOK = 0.2
"""Seconds between checks whether the first version is ready."""

state = AppState(InferenceSettings())
_app = allowing(make_app(state), state.settings.cors)


class Dispatcher:
    """Sends Bento's paths to Bento and all others to the application.

    An application mounted in Bento's would not get the paths that match no route.
    """

    def __init__(self, bento: ASGIApp) -> None:
        self._bento = bento

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; lifespan events go to Bento."""
        is_ours = scope["type"] == "http" and scope["path"] not in BENTOS
        await (_app if is_ours else self._bento)(scope, receive, send)


@bentoml.service(
    name="inference",
    workers=1,  # one process holds one network; more replicas are more processes
    traffic={"timeout": 3600},
    metrics={"enabled": False},  # its labels would be any requested path; see services.inference.http.request_metrics
    logging={"access": {"enabled": False}},
)
class Inference:
    """Serves pictures of one network's versions."""

    @bentoml.on_startup
    async def begin(self) -> None:
        """Start to load in the background; the service listens at once."""
        telemetry = TelemetrySettings()
        logs.configure(telemetry)
        for chatty in ("bentoml", "uvicorn"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self._observing = ExitStack()
        self._observing.enter_context(observing("inference", telemetry))
        self._ending = asyncio.Event()
        self._serving = asyncio.create_task(self._serve())

    @bentoml.on_shutdown
    async def end(self) -> None:
        """Close everything; all requests have ended."""
        self._ending.set()
        await self._serving
        self._observing.close()

    async def __is_ready__(self) -> bool:
        """Whether a request would be served now."""
        return state.ready

    async def _serve(self) -> None:
        try:
            async with opened(state.settings) as images:
                state.open(images)
                watching = asyncio.create_task(_tell_of_the_first(state))
                await self._ending.wait()
                watching.cancel()
                state.close()
        except SfumatoError as error:
            state.failure = error
            log.error("%s", error)
            os.kill(os.getpid(), signal.SIGTERM)


Inference.add_asgi_middleware(Dispatcher)  # pyright: ignore[reportArgumentType] (its protocol wants what no middleware has)


async def _tell_of_the_first(state: AppState) -> None:
    """Log why no version is served yet, and when one is."""
    told = ""
    while not state.ready:
        trouble = state.images.catalog.trouble
        if trouble != told:
            log.info("Waiting: %s.", trouble)
            told = trouble
        await asyncio.sleep(LOOK)
    listed = state.images.catalog.listing()
    log.info("Serving %s: version %s.", state.settings.model, listed[0].version[:12] if listed else "")
